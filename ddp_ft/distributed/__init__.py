"""Processes that work together: who they are, what they agree on, and what one does when another dies."""
