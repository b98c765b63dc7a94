"""Floor 4: the command line. It parses and draws; no rule of the domain lives here."""
