"""The terminal UI: forms, profiles, runs and dashboards on the same models as the command line."""
