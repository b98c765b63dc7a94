"""Floor 2, above the stages: packages for boards, and the way there."""
