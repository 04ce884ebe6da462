"""How sure a metric is: bootstrap intervals over samples, and whether one model is better than another on the same set.

Percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16. What it tells is
how far a metric would move with other samples of the same kind; nothing of other seeds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from ddp_ft.evaluation.analysis import THRESHOLD, Floats, ScoredSet

RESAMPLES = 1000
LEVEL = 0.95
# Metrics that look at every output in every resample are left without an interval above so many samples x outputs:
# 4 s on one core.
MOST_OUTPUTS = 200_000
# Values of weights that are held at a time, 2 MiB: what a core's own cache holds.
_BLOCK = 2**18
_TOP = 5

# Of the weights of samples in some resamples (B x N; how often each was drawn), the metric in each (B).
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much more of a metric the second of two models has; `p_value` is of there being no difference."""

    value: float
    interval: Interval
    p_value: float


def intervals(scored_set: ScoredSet, count: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """The 95 % interval of each metric that can be drawn again cheaply. Where all samples are right or all are wrong,
    no resample differs; the exact interval for a share is given there (Clopper and Pearson 1934)."""
    if not len(scored_set):
        return {}
    metrics = statistics(scored_set)
    drawn = _draw(metrics, len(scored_set), count, seed)
    found = {name: _middle(values) for name, values in drawn.items() if np.isfinite(values).all()}
    for name in {"accuracy", "top5_accuracy", "exact_match"} & found.keys():
        if found[name].low == found[name].high:
            found[name] = _of_unanimous(found[name].low, len(scored_set))
    return found


def difference(
    first: ScoredSet, second: ScoredSet, metric: str, higher_is_better: bool, count: int = RESAMPLES
) -> Difference:
    """By how much `second` is better than `first` in a metric, of the same samples in the same order.

    Of accuracy and exact_match the p value is McNemar's exact one, of others that of the paired bootstrap.
    """
    assert len(first) == len(second) and np.array_equal(first.truth, second.truth)
    pair = {"first": statistics(first)[metric], "second": statistics(second)[metric]}
    sign = 1 if higher_is_better else -1
    drawn = _draw(pair, len(first), count, seed=0)
    apart = sign * (drawn["second"] - drawn["first"])
    once = np.ones((1, len(first)))
    value = sign * float(pair["second"](once)[0] - pair["first"](once)[0])
    if metric in ("accuracy", "exact_match"):
        only_first = int((first.correct & ~second.correct).sum())
        only_second = int((second.correct & ~first.correct).sum())
        p_value = mcnemar(only_first, only_second)
    else:
        p_value = _bootstrap_p_value(apart)
    return Difference(value, _middle(apart), p_value)


def has_statistic(scored_set: ScoredSet, metric: str) -> bool:
    """Whether `intervals` and `difference` know that metric."""
    return metric in statistics(scored_set)


def _bootstrap_p_value(apart: Floats) -> float:
    """Twice the share of resamples on the other side of 0; one more is counted on either, so that it is never 0."""
    side = min(int((apart <= 0).sum()), int((apart >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(apart) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p value of McNemar's exact test, from how many samples only one of two models has right: a coin thrown
    that often that falls that unevenly or more so."""
    thrown, less = only_first + only_second, min(only_first, only_second)
    if not thrown:
        return 1.0
    # In logarithms, as the binomial coefficients of thousands leave the range of a float.
    top = math.lgamma(thrown + 1) - thrown * math.log(2)
    terms = (top - math.lgamma(k + 1) - math.lgamma(thrown - k + 1) for k in range(less + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in their order."""
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
    """How often each sample is drawn, block by block: rows of numbers whose sum is `samples`."""
    generator, most = np.random.default_rng(seed), max(1, _BLOCK // samples)
    for begin in range(0, count, most):
        rows = min(most, count - begin)
        drawn = generator.integers(0, samples, (rows, samples)) + np.arange(rows)[:, None] * samples
        yield np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def _middle(values: Floats, level: float = LEVEL) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _of_unanimous(share: float, samples: int) -> Interval:
    end = ((1 - LEVEL) / 2) ** (1 / samples)
    return Interval(end, 1.0) if share == 1 else Interval(0.0, 1 - end)


def statistics(scored_set: ScoredSet) -> dict[str, Statistic]:
    """The metrics that can be drawn again, as the tasks define them."""
    make = {LABEL: _of_classes, LABELS: _of_labels, NUMBERS: _of_numbers}[scored_set.kind]
    return make(scored_set)


def _mean_of(values: NDArray[np.float64]) -> Statistic:
    return lambda weights: np.asarray(weights @ values / weights.sum(1))


def _of_classes(scored_set: ScoredSet) -> dict[str, Statistic]:
    classes, scores, target = len(scored_set.names), scored_set.scores, scored_set.target
    found: dict[str, Statistic] = {
        "accuracy": _mean_of(scored_set.correct.astype(float)),
        "balanced_accuracy": partial(_mean_recall, scored_set, classes),
        "macro_f1": partial(_mean_f1_of_classes, scored_set, classes),
    }
    if classes > _TOP:
        own = np.take_along_axis(scores, target[:, None], 1)
        found["top5_accuracy"] = _mean_of(((scores > own).sum(1) < _TOP).astype(float))
    return found


def _per_class(weights: Floats, classes: NDArray[np.int64], count: int) -> Floats:
    """Sums of weights by class, B x count."""
    return np.stack([np.bincount(classes, weights=row, minlength=count) for row in weights])


def _mean_recall(scored_set: ScoredSet, classes: int, weights: Floats) -> Floats:
    there = _per_class(weights, scored_set.target, classes)
    hits = _per_class(weights * scored_set.correct, scored_set.target, classes)
    return _mean_where(hits, there, there > 0)


def _mean_f1_of_classes(scored_set: ScoredSet, classes: int, weights: Floats) -> Floats:
    there = _per_class(weights, scored_set.target, classes)
    said = _per_class(weights, scored_set.predicted, classes)
    hits = _per_class(weights * scored_set.correct, scored_set.target, classes)
    return _mean_where(2 * hits, there + said, there + said > 0)


def _mean_where(parts: Floats, wholes: Floats, usable: NDArray[np.bool_]) -> Floats:
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=usable)
    return np.asarray(shares.sum(1) / np.maximum(usable.sum(1), 1))


def _of_labels(scored_set: ScoredSet) -> dict[str, Statistic]:
    said, there = scored_set.scores >= THRESHOLD, scored_set.truth > THRESHOLD
    hits, both = (said & there).sum(1).astype(float), (said.sum(1) + there.sum(1)).astype(float)
    found: dict[str, Statistic] = {
        "exact_match": _mean_of((said == there).all(1).astype(float)),
        "micro_f1": lambda weights: np.asarray(2 * (weights @ hits) / np.maximum(weights @ both, 1e-12)),
    }
    if scored_set.scores.size <= MOST_OUTPUTS:
        found["macro_f1"] = partial(_mean_f1_of_labels, (said & there).astype(float), said.astype(float) + there)
        found["mAP"] = partial(_mean_average_precision, [_Ranking.of(*each) for each in _columns(scored_set)])
    return found


def _columns(scored_set: ScoredSet) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
    for column in range(len(scored_set.names)):
        yield scored_set.scores[:, column], scored_set.truth[:, column] > THRESHOLD


def _mean_f1_of_labels(hits: Floats, both: Floats, weights: Floats) -> Floats:
    wholes = weights @ both
    return _mean_where(2 * (weights @ hits), wholes, wholes > 0)


@dataclass(frozen=True)
class _Ranking:
    """Samples by falling score: `order`, the samples that have the label (`holders`, in that order), and where runs of
    equal scores end that hold one of them: how many samples (`said`) and holders (`hits`) there are up to each end."""

    order: NDArray[np.int64]
    holders: NDArray[np.int64]
    said: NDArray[np.int64]
    hits: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, truth: NDArray[np.bool_]) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
        hits = np.cumsum(truth[order])[ends]
        held = np.diff(hits, prepend=0) > 0
        # Behind the last holder nothing counts.
        last = ends[held][-1] + 1 if held.any() else 0
        return cls(order[:last], order[truth[order]], ends[held] + 1, hits[held])

    def average_precision(self, weights: Floats) -> tuple[Floats, Floats]:
        """Average precision in each resample (B), and how many samples have the label there (B)."""
        said = np.cumsum(weights[:, self.order], 1)[:, self.said - 1]
        hits = np.cumsum(weights[:, self.holders], 1)[:, self.hits - 1]
        precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
        there = hits[:, -1] if hits.shape[1] else np.zeros(len(weights))
        return (precision * np.diff(hits, axis=1, prepend=0)).sum(1) / np.maximum(there, 1), there


def _mean_average_precision(rankings: Sequence[_Ranking], weights: Floats) -> Floats:
    """Over the labels that a sample of the resample has."""
    each = [ranking.average_precision(weights) for ranking in rankings]
    precisions, there = np.stack([a for a, _ in each], 1), np.stack([b for _, b in each], 1)
    return _mean_where(precisions, np.ones_like(precisions), there > 0)


def _of_numbers(scored_set: ScoredSet) -> dict[str, Statistic]:
    off = scored_set.scores - scored_set.truth
    # Around the mean, as a large one would leave few digits to its square.
    apart = scored_set.truth - scored_set.truth.mean(0)
    found: dict[str, Statistic] = {
        "mae": _mean_of(np.abs(off).mean(1)),
        "rmse": lambda weights: np.sqrt(weights @ off**2 / weights.sum(1)[:, None]).mean(1),
        "r2": partial(_mean_r2, off, apart),
    }
    if len(scored_set.names) > 1:
        found |= {f"mae/{name}": _mean_of(np.abs(off[:, c])) for c, name in enumerate(scored_set.names)}
    return found


def _mean_r2(off: Floats, apart: Floats, weights: Floats) -> Floats:
    """0 for a number that is the same in the whole resample, as in the task."""
    spread = weights @ apart**2 - (weights @ apart) ** 2 / weights.sum(1)[:, None]
    usable = spread > 1e-12 * (weights @ apart**2 + 1e-300)
    explained = 1 - np.divide(weights @ off**2, spread, out=np.ones_like(spread), where=usable)
    return np.asarray(explained.mean(1))
