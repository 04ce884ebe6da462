"""Samples that cannot be read: found beforehand, left out, replaced, written down."""
