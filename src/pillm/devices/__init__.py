"""Floor 1: boards as data, and what can be predicted for them."""
