"""Floor 2: packages for boards, and the way there."""
