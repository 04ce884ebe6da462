"""The run folder: its files, its checkpoints, and who may write to it. What is logged or traced there, others write."""
