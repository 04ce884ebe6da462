"""Where metrics go: the terminal, metrics.jsonl, TensorBoard, services."""
