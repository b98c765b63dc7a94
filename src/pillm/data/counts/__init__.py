"""Counts and lengths."""
