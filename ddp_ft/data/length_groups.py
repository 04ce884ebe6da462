"""Batches of samples of similar length, so that little of them is padding: an order that follows from another order."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Samples are sorted within so many batches, as transformers' LengthGroupedSampler does, and at most within a quarter of
# an epoch: else the same samples would meet in each.
MOST_BATCHES, LEAST_WINDOWS = 50, 4


def grouped(order: Tensor, lengths: NDArray[np.int32], steps: Sequence[range], generator: torch.Generator) -> Tensor:
    """The order (int64, N) with the samples of each window of `steps` sorted by length, the longest first; the steps of
    a window then come in random order.

    `lengths` are those of all samples by index, `steps` the places in the order of each step's batch.
    """
    window = max(1, min(MOST_BATCHES, len(steps) // LEAST_WINDOWS))
    found = order.clone()
    for first in range(0, len(steps), window):
        batches = steps[first : first + window]
        places = range(batches[0].start, batches[-1].stop)
        mine = order[places.start : places.stop]
        by_length = mine[torch.from_numpy(np.argsort(-lengths[mine.numpy()].astype(np.int64), kind="stable"))]
        start = 0
        for number in torch.randperm(len(batches), generator=generator).tolist():
            stop = start + len(batches[number])
            found[batches[number].start : batches[number].stop] = by_length[start:stop]
            start = stop
    return found
