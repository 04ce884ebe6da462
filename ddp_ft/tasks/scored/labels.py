"""Sets of samples of any number of labels each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.errors import shortened
from ddp_ft.tasks.scored.base import (
    Caption,
    Floats,
    Reliability,
    Statistic,
    ThresholdHint,
    mean_f1,
    mean_of,
    mean_where,
)
from ddp_ft.tasks.scored.probabilities import THRESHOLD, ScoredProbabilities, binned

# Metrics that need every output in every resample have no interval above so many samples x outputs: 4 s on one core.
MOST_OUTPUTS = 200_000


class ScoredLabels(ScoredProbabilities):
    """Sets in which each label is predicted from a probability of THRESHOLD on. Unknown labels count nowhere."""

    correct_metric: ClassVar[str] = "exact_match"

    @cached_property
    def predicted(self) -> NDArray[np.bool_]:
        """Which labels are predicted, N x names."""
        return np.asarray(self.estimates >= THRESHOLD)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which labels are known, N x names."""
        return np.asarray(~np.isnan(self.truth))

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        """Which labels are there, N x names."""
        return np.asarray(self.truth > THRESHOLD)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether all known labels of a sample are right."""
        return np.asarray(((self.predicted == self.there) | ~self.known).all(1))

    @cached_property
    def confidence(self) -> Floats:
        """The confidence of the least sure label."""
        return np.asarray(np.maximum(self.estimates, 1 - self.estimates).min(1))

    @cached_property
    def error(self) -> Floats:
        """The error of the worst label."""
        return np.asarray(np.max(self._errors(), 1))

    def _errors(self) -> Floats:
        return np.where(self.known, np.abs(self.estimates - self.truth), 0.0)

    def caption(self, index: int) -> Caption:
        """The labels that are missed and those that are wrongly predicted, worst first; if there are none, the correct
        ones and the least certain one."""
        there, predicted, known = self.there[index], self.predicted[index], self.known[index]
        missed, wrongly = there & ~predicted, predicted & ~there & known
        if not (missed | wrongly).any():
            unsure = int(np.where(known, np.abs(self.estimates[index] - THRESHOLD), np.inf).argmin())
            return [("correct", self._listed(index, there & predicted)),
                    ("least certain", self.with_probability(index, unsure))]  # fmt: skip
        parts = {"missed": missed, "wrongly": wrongly, "correct": there & predicted}
        return [(what, self._listed(index, labels)) for what, labels in parts.items() if labels.any()]

    def _listed(self, index: int, labels: NDArray[np.bool_]) -> str:
        """A sample's labels with their probabilities, what is farthest from the truth first."""
        errors = np.where(self.known[index], np.abs(self.estimates[index] - self.truth[index]), 0.0)
        order = np.argsort(-errors, kind="stable")
        return shortened([self.with_probability(index, int(c)) for c in order if labels[c]], 3) or "no label"

    def reliability(self) -> Reliability:
        """Over all labels of all samples."""
        return binned(self.estimates[self.known], self.truth[self.known])

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each label."""
        return (self.predicted & self.there).sum(0), (self.predicted & self.known).sum(0)

    def thresholds(self) -> list[ThresholdHint | None]:
        """The threshold of each label with the largest F1."""
        columns = [(self.known[:, c], c) for c in range(len(self.names))]
        return [_best_threshold(self.estimates[rows, c], self.there[rows, c]) for rows, c in columns]

    def statistics(self) -> dict[str, Statistic]:
        """macro_f1 and mAP for up to MOST_OUTPUTS outputs."""
        right, predicted = self.predicted & self.there, self.predicted & self.known
        hits, sizes = right.sum(1).astype(float), (predicted.sum(1) + self.there.sum(1)).astype(float)
        usable = self.known.any(1)
        found: dict[str, Statistic] = {
            "exact_match": mean_of(self.correct.astype(float)) if usable.all() else self._exact_match,
            "micro_f1": lambda weights: np.asarray(2 * (weights @ hits) / np.maximum(weights @ sizes, 1e-12)),
        }
        if self.estimates.size <= MOST_OUTPUTS:
            columns = ((self.estimates[:, c], self.there[:, c], self.known[:, c]) for c in range(len(self.names)))
            rankings = [_Ranking.of(*column) for column in columns]
            parts, wholes = right.astype(float), predicted.astype(float) + self.there
            found["macro_f1"] = lambda weights: mean_f1(weights @ parts, weights @ wholes)
            found["mAP"] = partial(_mean_average_precision, rankings)
        return found

    def _exact_match(self, weights: Floats) -> Floats:
        """Over the samples of which anything is known."""
        usable = self.known.any(1)
        drawn = weights[:, usable].sum(1)
        return np.asarray(weights[:, usable] @ self.correct[usable].astype(float) / np.maximum(drawn, 1e-12))


def _best_threshold(scores: Floats, there: NDArray[np.bool_]) -> ThresholdHint | None:
    if not there.any():
        return None
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(there[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + there.sum())
    f1[:-1][falling[1:] == falling[:-1]] = -1  # no threshold lies between equal scores
    best = int(f1.argmax())
    # Halfway to the next score: the set does not tell where in between is best.
    threshold = (falling[best] + (falling[best + 1] if best + 1 < len(falling) else 0.0)) / 2
    predicted = scores >= THRESHOLD
    at_half = 2 * (predicted & there).sum() / (predicted.sum() + there.sum())
    return ThresholdHint(float(threshold), float(f1[best]), float(at_half))


@dataclass(frozen=True)
class _Ranking:
    """Samples of which the label is known, by falling score: `order`; `holders`, those that have it, in that order; and
    at each end of a run of equal scores that has a holder, how many samples (`counts`) and holders (`hits`) there are
    up to it."""

    order: NDArray[np.int64]
    holders: NDArray[np.int64]
    counts: NDArray[np.int64]
    hits: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, truth: NDArray[np.bool_], known: NDArray[np.bool_]) -> "_Ranking":
        rows = np.flatnonzero(known)
        order = rows[np.argsort(-scores[rows], kind="stable")]
        if not len(order):
            return cls(order, order, order, order)
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        hits = np.cumsum(truth[order])[ends]
        held = np.diff(hits, prepend=0) > 0
        # Samples after the last holder change nothing.
        last = ends[held][-1] + 1 if held.any() else 0
        return cls(order[:last], order[truth[order]], ends[held] + 1, hits[held])

    def average_precision(self, weights: Floats) -> tuple[Floats, Floats]:
        """Average precision in each resample (B), and how many samples have the label there (B)."""
        counts = np.cumsum(weights[:, self.order], 1)[:, self.counts - 1]
        hits = np.cumsum(weights[:, self.holders], 1)[:, self.hits - 1]
        precision = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        there = hits[:, -1] if hits.shape[1] else np.zeros(len(weights))
        return (precision * np.diff(hits, axis=1, prepend=0)).sum(1) / np.maximum(there, 1), there


def _mean_average_precision(rankings: Sequence[_Ranking], weights: Floats) -> Floats:
    """Over the labels that a sample of the resample has."""
    each = [ranking.average_precision(weights) for ranking in rankings]
    precisions, there = np.stack([a for a, _ in each], 1), np.stack([b for _, b in each], 1)
    return mean_where(precisions, np.ones_like(precisions), there > 0)
