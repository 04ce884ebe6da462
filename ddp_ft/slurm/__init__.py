"""Jobs of Slurm: scripts, tasks, the time that is left, and starting again."""
