"""Floor 2: a trained model becomes a GGUF file."""
