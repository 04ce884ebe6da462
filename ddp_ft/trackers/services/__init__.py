"""Services that show curves of many runs (MLflow, Weights & Biases), each in a process of its own, without torch."""
