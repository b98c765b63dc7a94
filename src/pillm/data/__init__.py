"""Floor 2: datasets."""
