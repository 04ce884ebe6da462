"""Curves of how well a class's probability ranks samples: precision over recall, true over false positive rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, ScoredSet

# The most points of a curve; more cannot be seen.
MOST_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """The points of a class's curve, and its area: the average precision, or the area below the ROC curve."""

    name: str
    x: Floats
    y: Floats
    area: float


def ranking_curves(scored_set: ScoredSet, count: int) -> tuple[list[Curve], list[Curve]]:
    """Precision-recall and ROC curves of the rarest classes, `count` at most, of which some samples are and some are
    not; none for a set without classes."""
    found = [each for each in scored_set.decisions(count) if each[1].any() and not each[1].all()]
    return [precision_recall(*each) for each in found], [roc(*each) for each in found]


def precision_recall(name: str, there: NDArray[np.bool_], scores: Floats) -> Curve:
    """Precision over recall at all thresholds, from the strictest; at least one sample is `there`. The area is the sum
    of precision x gained recall, as in scikit-learn's average_precision_score."""
    hits, claimed = _counts(there, scores)
    precision, recall = hits / claimed, hits / hits[-1]
    area = float((np.diff(recall, prepend=0.0) * precision).sum())
    return Curve(name, *_thinned(np.r_[0.0, recall], np.r_[precision[0], precision]), area)


def roc(name: str, there: NDArray[np.bool_], scores: Floats) -> Curve:
    """True over false positive rate at all thresholds; some samples, not all, are `there`."""
    hits, claimed = _counts(there, scores)
    false = np.r_[0.0, (claimed - hits) / (claimed - hits)[-1]]
    true = np.r_[0.0, hits / hits[-1]]
    area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
    return Curve(name, *_thinned(false, true), area)


def _counts(there: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """At each different score, from the highest: samples from it on that are `there`, and all from it on."""
    order = np.argsort(-scores, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
    return np.cumsum(there[order])[ends].astype(float), ends + 1.0


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[kept], y[kept]
