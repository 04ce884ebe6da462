"""What is told of runs: the table at the start, the summary at the end, pages, model cards, comparisons."""
