"""Exact results on every sample once, and how certain they are."""
