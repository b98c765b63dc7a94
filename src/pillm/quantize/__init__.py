"""Floor 2: a GGUF file becomes smaller."""
