"""Repeats: found, left out, and kept together in splits."""
