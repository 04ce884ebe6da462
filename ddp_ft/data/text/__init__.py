"""Texts: read, tokenised, prepared for a model."""
