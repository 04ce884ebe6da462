"""The kinds of targets: what dividing, counting, drawing and reading a table need to know of each."""
