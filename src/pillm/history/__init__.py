"""Floor 1: measurements, what one says and where they are kept."""
