"""A trained model as a file for other software, compared with the original."""
