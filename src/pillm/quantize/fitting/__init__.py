"""Which type each tensor gets: what the model's own predictions are sensitive to, what each type costs, and the best mix."""
