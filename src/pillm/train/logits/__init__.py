"""`pillm logits`: a teacher's distributions on labelled dialogues, cached for training."""
