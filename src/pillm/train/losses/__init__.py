"""What a student is taught, as functions of a chunk of its logits."""
