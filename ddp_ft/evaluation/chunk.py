"""The unit in which what is computed without training is dealt to ranks. Free of torch."""

# Samples of an evaluation, a prediction or a table of features that one rank computes, in one forward pass if they fit.
# Fixed, so that the numbers do not depend on the machine.
EVAL_CHUNK = 64
