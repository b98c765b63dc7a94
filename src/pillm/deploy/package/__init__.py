"""Debian packages: llama.cpp with its services, models, and a repository that apt reads."""
