"""Means in resamples, of which the metrics of scored sets are made."""

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, Statistic


def mean_of(values: Floats) -> Statistic:
    """The mean of a value of each sample (N)."""
    return lambda weights: np.asarray(weights @ values / weights.sum(1))


def mean_where(parts: Floats, wholes: Floats, usable: NDArray[np.bool_]) -> Floats:
    """The mean share part / whole over those that are usable, in each resample (B x names each, to B); 0 for none."""
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=usable)
    return np.asarray(shares.sum(1) / np.maximum(usable.sum(1), 1))
