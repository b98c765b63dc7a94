"""The first screen: everything there is to begin with."""
