"""The commands: what is typed and printed. click is used here and in the five files at the top alone."""
