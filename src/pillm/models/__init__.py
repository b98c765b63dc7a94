"""Floor 1: model references and chat templates."""
