"""The card: one source, three files, and whether they still hold."""
