"""A form for every row of the stage table, made from its options model."""
