"""What can be learned: one file a task, and the losses, weights and metrics that tasks choose from."""
