"""Means of paired differences and their uncertainty: Student's t intervals."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95

Place = tuple[str, str, int]  # (set, model and number of images, seed)


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; the ends are NaN where there are too few values for one."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent values; ValueError for none."""
    if not len(values):
        raise ValueError("no values")
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return _around(float(np.mean(values)), error, len(values) - 1, len(values), level)


def over_seeds(differences: Mapping[Place, float], level: float = LEVEL) -> Interval:
    """The mean over these sets and models, and how far other draws and other seeds would move it.

    All models of one (set, seed) share their images, and a small draw is part of a larger one, so their mean is one
    value. The sets are strata: their variances add up, and the degrees of freedom are Welch's and Satterthwaite's.
    (set, seed) without all that the set has are left out.
    """
    strata = list(_by_set(differences).values())
    mean = float(np.mean([np.mean(values) for values in strata]))
    if any(len(values) < 2 for values in strata):
        return Interval(mean, math.nan, math.nan, sum(map(len, strata)))
    parts = [float(np.var(values, ddof=1)) / len(values) / len(strata) ** 2 for values in strata]
    total = sum(parts)
    terms = [part**2 / (len(values) - 1) for part, values in zip(parts, strata, strict=True)]
    freedom = total**2 / sum(terms) if sum(terms) > 0 else math.inf
    return _around(mean, math.sqrt(total), freedom, sum(map(len, strata)), level)


def over_sets(differences: Mapping[Place, float], level: float = LEVEL) -> Interval:
    """The same mean, and how far other data sets would move it: each set is one value. Wide, since sets are few."""
    return t_interval([float(np.mean(values)) for values in _by_set(differences).values()], level)


def _by_set(differences: Mapping[Place, float]) -> dict[str, list[float]]:
    """Set -> the mean over its models and sizes for each seed."""
    wanted = Counter(data_set for data_set, _ in {place[:2] for place in differences})
    clusters: dict[tuple[str, int], list[float]] = {}
    for (data_set, _, seed), value in differences.items():
        clusters.setdefault((data_set, seed), []).append(value)
    sets: dict[str, list[float]] = {}
    for (data_set, _), values in clusters.items():
        if len(values) == wanted[data_set]:
            sets.setdefault(data_set, []).append(float(np.mean(values)))
    if not sets:
        raise ValueError("no (set, seed) has all models")
    return sets


def _around(mean: float, error: float, freedom: float, count: int, level: float) -> Interval:
    if math.isnan(error):
        return Interval(mean, math.nan, math.nan, count)
    reach = error * float(stats.t.ppf((1 + level) / 2, freedom))
    return Interval(mean, mean - reach, mean + reach, count)
