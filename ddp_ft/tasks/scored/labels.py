"""Sets of samples of any number of labels each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, Reliability, Statistic, ThresholdHint
from ddp_ft.tasks.scored.probabilities import THRESHOLD, ScoredProbabilities, binned
from ddp_ft.tasks.scored.resampled import mean_of, mean_where

# Metrics that look at every output in every resample are left without an interval above so many samples x outputs:
# 4 s on one core.
MOST_OUTPUTS = 200_000


class ScoredLabels(ScoredProbabilities):
    """Each label is there or not, from a probability of THRESHOLD on."""

    correct_metric: ClassVar[str] = "exact_match"

    @cached_property
    def said(self) -> NDArray[np.bool_]:
        """Which labels are said to be there, N x names."""
        return np.asarray(self.scores >= THRESHOLD)

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        """Which labels are there, N x names."""
        return np.asarray(self.truth > THRESHOLD)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether all labels of a sample are right."""
        return np.asarray((self.said == self.there).all(1))

    @cached_property
    def confidence(self) -> Floats:
        """That of the least sure label."""
        return np.asarray(np.maximum(self.scores, 1 - self.scores).min(1))

    @cached_property
    def error(self) -> Floats:
        """That of the worst label."""
        return np.asarray(np.max(np.abs(self.scores - self.truth), 1))

    def caption(self, index: int) -> tuple[str, str]:
        """The label that is farthest off with its probability, and whether it is there."""
        wrong = int(np.abs(self.scores[index] - self.truth[index]).argmax())
        name = self.names[wrong]
        return f"{name} {self.scores[index, wrong]:.0%}", name if self.there[index, wrong] else f"no {name}"

    def reliability(self) -> Reliability:
        """Over all labels of all samples."""
        return binned(self.scores.ravel(), self.truth.ravel())

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each label."""
        return (self.said & self.there).sum(0), self.said.sum(0)

    def thresholds(self) -> list[ThresholdHint | None]:
        """The threshold of each label with the largest F1."""
        return [_best_threshold(self.scores[:, c], self.there[:, c]) for c in range(len(self.names))]

    def statistics(self) -> dict[str, Statistic]:
        """macro_f1 and mAP for up to MOST_OUTPUTS outputs."""
        said, there = self.said, self.there
        hits, both = (said & there).sum(1).astype(float), (said.sum(1) + there.sum(1)).astype(float)
        found: dict[str, Statistic] = {
            "exact_match": mean_of(self.correct.astype(float)),
            "micro_f1": lambda weights: np.asarray(2 * (weights @ hits) / np.maximum(weights @ both, 1e-12)),
        }
        if self.scores.size <= MOST_OUTPUTS:
            rankings = [_Ranking.of(self.scores[:, c], there[:, c]) for c in range(len(self.names))]
            found["macro_f1"] = partial(_mean_f1, (said & there).astype(float), said.astype(float) + there)
            found["mAP"] = partial(_mean_average_precision, rankings)
        return found


def _best_threshold(scores: Floats, there: NDArray[np.bool_]) -> ThresholdHint | None:
    if not there.any():
        return None
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(there[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + there.sum())
    f1[:-1][falling[1:] == falling[:-1]] = -1  # no threshold parts equal scores
    best = int(f1.argmax())
    # Halfway to the next score, as the set says nothing about where in between.
    threshold = (falling[best] + (falling[best + 1] if best + 1 < len(falling) else 0.0)) / 2
    said = scores >= THRESHOLD
    at_half = 2 * (said & there).sum() / (said.sum() + there.sum())
    return ThresholdHint(float(threshold), float(f1[best]), float(at_half))


def _mean_f1(hits: Floats, both: Floats, weights: Floats) -> Floats:
    wholes = weights @ both
    return mean_where(2 * (weights @ hits), wholes, wholes > 0)


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
    return mean_where(precisions, np.ones_like(precisions), there > 0)
