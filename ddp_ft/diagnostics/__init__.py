"""The doctor's checks: what is wrong, before or after a run."""
