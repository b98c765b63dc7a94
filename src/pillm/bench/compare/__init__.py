"""`pillm bench compare`: two models, two builds, or a run and its history; better, same, worse or cannot tell."""
