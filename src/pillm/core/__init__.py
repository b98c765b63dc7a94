"""Floor 0: the words that all rooms share. Imports nothing of pillm above it."""
