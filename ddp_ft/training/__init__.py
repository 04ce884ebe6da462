"""A run's parts, its loop and its state."""
