"""Floor 2: a student learns."""
