"""Texts and pages about runs: the table at the start, the summary at the end, reports, model cards, comparisons."""
