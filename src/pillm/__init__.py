"""Pi-LLM Optimizer: from a dataset and a big model to a small model on a Raspberry Pi."""

__version__ = "0.1.0"
