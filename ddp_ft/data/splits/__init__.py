"""Which samples are trained on, validated with and tested with."""
