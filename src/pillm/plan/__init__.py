"""Floor 2: what fits on a board and how fast it would be, before anything is downloaded or bought."""
