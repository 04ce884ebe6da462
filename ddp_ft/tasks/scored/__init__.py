"""What the tasks answer reports, charts and comparisons about a set: one file a kind of answer."""
