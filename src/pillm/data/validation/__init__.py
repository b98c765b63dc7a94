"""What can be wrong with a dataset, and finding all of it."""
