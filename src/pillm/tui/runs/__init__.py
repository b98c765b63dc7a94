"""Runs: start, stop, find and watch them."""
