"""Settings of the machine that are measured instead of guessed."""
