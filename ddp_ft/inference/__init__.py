"""Trained models: loaded, combined, asked for predictions, measured again."""
