"""How certain a metric is: bootstrap intervals over samples, and whether one of two models is better on the same set.

Percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16. It estimates how
far a metric would move with other samples of the same kind, and not with other seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ddp_ft.tasks.metric_table import known_metric
from ddp_ft.tasks.scored.base import Floats, ScoredSet, Statistic

RESAMPLES = 1000
LEVEL = 0.95
# Weights in memory at a time, 2 MiB: the size of a core's own cache.
_BLOCK = 2**18


@dataclass(frozen=True)
class Interval:
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """By how much the second of two models is better in a metric, and the `p_value` of there being no difference."""

    value: float
    interval: Interval
    p_value: float


def intervals(scored_set: ScoredSet, count: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Return the 95 % interval of each metric that resamples can compute cheaply. If all samples are right, or all are
    wrong, no resample differs: of a share of samples the exact interval is returned (Clopper and Pearson 1934), of
    another metric none."""
    metrics = scored_set.statistics() if len(scored_set) else {}
    if not metrics:
        return {}
    drawn = _draw(metrics, len(scored_set), count, seed)
    found = {name: _middle(values) for name, values in drawn.items() if np.isfinite(values).all()}
    exact = {name: _of_share(each, len(scored_set)) if _counts(name) else each for name, each in found.items()}
    return {name: each for name, each in exact.items() if each.low != each.high}


def difference(
    first: ScoredSet, second: ScoredSet, metric: str, higher_is_better: bool, count: int = RESAMPLES
) -> Difference:
    """Return by how much `second` is better than `first` in a metric, on the same samples in the same order. For the
    share of samples that are right the p value is McNemar's exact one, else that of the paired bootstrap."""
    assert len(first) == len(second) and np.array_equal(first.truth, second.truth, equal_nan=True)
    pair = {"first": first.statistics()[metric], "second": second.statistics()[metric]}
    sign = 1 if higher_is_better else -1
    drawn = _draw(pair, len(first), count, seed=0)
    apart = sign * (drawn["second"] - drawn["first"])
    once = np.ones((1, len(first)))
    value = sign * float(pair["second"](once)[0] - pair["first"](once)[0])
    if metric == first.correct_metric:
        assert first.correct is not None and second.correct is not None
        only_first = int((first.correct & ~second.correct).sum())
        only_second = int((second.correct & ~first.correct).sum())
        p_value = mcnemar(only_first, only_second)
    else:
        p_value = _bootstrap_p_value(apart)
    return Difference(value, _middle(apart), p_value)


def _bootstrap_p_value(apart: Floats) -> float:
    """Return twice the share of resamples on the other side of 0, with one added to both counts, so it is never 0."""
    side = min(int((apart <= 0).sum()), int((apart >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(apart) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test, from how many samples only one of two models has right:
    that of a fair coin which falls as unevenly or more so."""
    thrown, less = only_first + only_second, min(only_first, only_second)
    if not thrown:
        return 1.0
    # In logarithms, since binomial coefficients of thousands leave the range of a float.
    top = math.lgamma(thrown + 1) - thrown * math.log(2)
    terms = (top - math.lgamma(k + 1) - math.lgamma(thrown - k + 1) for k in range(less + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _draw(metrics: dict[str, Statistic], samples: int, count: int, seed: int) -> dict[str, Floats]:
    parts: dict[str, list[Floats]] = {name: [] for name in metrics}
    for weights in _resamples(samples, count, seed):
        for name, metric in metrics.items():
            parts[name].append(metric(weights))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _resamples(samples: int, count: int, seed: int) -> Iterator[Floats]:
    """Yield how often each sample is drawn, block by block: rows of numbers whose sum is `samples`."""
    generator, most = np.random.default_rng(seed), max(1, _BLOCK // samples)
    for begin in range(0, count, most):
        rows = min(most, count - begin)
        drawn = generator.integers(0, samples, (rows, samples)) + np.arange(rows)[:, None] * samples
        yield np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def _middle(values: Floats, level: float = LEVEL) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _counts(name: str) -> bool:
    metric = known_metric(name)
    return metric is not None and metric.counts_samples


def _of_share(drawn: Interval, samples: int) -> Interval:
    """Return the exact interval if no resample differs, else the one that was drawn."""
    if drawn.low != drawn.high:
        return drawn
    end = ((1 - LEVEL) / 2) ** (1 / samples)
    return Interval(end, 1.0) if drawn.low == 1 else Interval(0.0, 1 - end)
