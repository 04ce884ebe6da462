"""Sets of samples of one class each."""

from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, Reliability, Statistic
from ddp_ft.tasks.scored.probabilities import ScoredProbabilities, binned
from ddp_ft.tasks.scored.resampled import mean_of, mean_where

_TOP = 5


class ScoredClasses(ScoredProbabilities):
    """`scores` sum to 1 in each row, and `truth` has one 1 in each row."""

    correct_metric: ClassVar[str] = "accuracy"

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each sample."""
        return np.asarray(np.argmax(self.scores, 1), dtype=np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether a sample's class is the likeliest one."""
        return np.equal(self.predicted, self.target)

    @cached_property
    def confidence(self) -> Floats:
        """The probability of the likeliest class."""
        return np.asarray(np.max(self.scores, 1))

    @property
    def sureness(self) -> float:
        """Mean confidence."""
        return float(self.confidence.mean())

    @cached_property
    def error(self) -> Floats:
        """1 - the probability of the true class: as they sum to 1, no other is further off."""
        return np.asarray(1 - np.take_along_axis(self.scores, self.target[:, None], 1)[:, 0])

    def caption(self, index: int) -> tuple[str, str]:
        """The likeliest class with its probability, and the true one."""
        said, true = int(self.predicted[index]), int(self.target[index])
        return f"{self.names[said]} {self.scores[index, said]:.0%}", self.names[true]

    def confusion(self) -> NDArray[np.int64]:
        """Of all classes."""
        classes = len(self.names)
        pairs = self.target * classes + self.predicted
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def reliability(self) -> Reliability:
        """One answer a sample."""
        return binned(self.confidence, self.correct.astype(float))

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Counted, as a table of 50,000 x 1,000 takes seconds."""
        hits = np.bincount(self.target[self.correct], minlength=len(self.names))
        return hits, np.bincount(self.predicted, minlength=len(self.names))

    def statistics(self) -> dict[str, Statistic]:
        """top5_accuracy for more than 5 classes."""
        found: dict[str, Statistic] = {
            "accuracy": mean_of(self.correct.astype(float)),
            "balanced_accuracy": partial(_mean_recall, self),
            "macro_f1": partial(_mean_f1, self),
        }
        if len(self.names) > _TOP:
            own = np.take_along_axis(self.scores, self.target[:, None], 1)
            found["top5_accuracy"] = mean_of(((self.scores > own).sum(1) < _TOP).astype(float))
        return found


def _per_class(weights: Floats, classes: NDArray[np.int64], count: int) -> Floats:
    """Sums of weights by class, B x count."""
    return np.stack([np.bincount(classes, weights=row, minlength=count) for row in weights])


def _mean_recall(scored_set: ScoredClasses, weights: Floats) -> Floats:
    classes = len(scored_set.names)
    there = _per_class(weights, scored_set.target, classes)
    hits = _per_class(weights * scored_set.correct, scored_set.target, classes)
    return mean_where(hits, there, there > 0)


def _mean_f1(scored_set: ScoredClasses, weights: Floats) -> Floats:
    classes = len(scored_set.names)
    there = _per_class(weights, scored_set.target, classes)
    said = _per_class(weights, scored_set.predicted, classes)
    hits = _per_class(weights * scored_set.correct, scored_set.target, classes)
    return mean_where(2 * hits, there + said, there + said > 0)
