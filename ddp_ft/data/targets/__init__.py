"""The kinds of targets: how each is divided, counted, drawn and read from a table."""
