"""Samples: their sources, their order, and how they become batches."""
