"""Floor 2: a teacher answers prompts."""
