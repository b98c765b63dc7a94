"""Profiles: the plan as a graph, options to change, and saving with comments kept."""
