"""`pillm bench history`: the command over the store."""
