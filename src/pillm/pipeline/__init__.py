"""Floor 3: stages, profiles, the engine, manifests, the report."""
