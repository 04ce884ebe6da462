"""Sets of samples of one class each."""

from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Caption, Floats, Reliability, Statistic, mean_f1, mean_of, mean_where
from ddp_ft.tasks.scored.probabilities import ScoredProbabilities, binned

_TOP = 5


class ScoredClasses(ScoredProbabilities):
    """`estimates` sum to 1 in each row, and `truth` has one 1 in each row."""

    correct_metric: ClassVar[str] = "accuracy"

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each sample."""
        return np.asarray(np.argmax(self.estimates, 1), dtype=np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether a sample's class is the likeliest one."""
        return np.equal(self.predicted, self.target)

    @cached_property
    def confidence(self) -> Floats:
        """The probability of the likeliest class."""
        return np.asarray(np.max(self.estimates, 1))

    @property
    def sureness(self) -> float:
        """Mean confidence."""
        return float(self.confidence.mean())

    @cached_property
    def error(self) -> Floats:
        """1 - the probability of the true class, which is the largest error because all sum to 1."""
        return np.asarray(1 - np.take_along_axis(self.estimates, self.target[:, None], 1)[:, 0])

    def caption(self, index: int) -> Caption:
        """The likeliest class with its probability and, if it is wrong, the true one."""
        found = self.with_probability(index, int(self.predicted[index]))
        if self.correct[index]:
            return [("correct", found)]
        return [("predicted", found), ("true", self.with_probability(index, int(self.target[index])))]

    def confusion(self) -> NDArray[np.int64]:
        """Of all classes."""
        classes = len(self.names)
        pairs = self.target * classes + self.predicted
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def reliability(self) -> Reliability:
        """One answer a sample."""
        return binned(self.confidence, self.correct.astype(float))

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By bincount: a table of 50,000 x 1,000 takes seconds."""
        hits = np.bincount(self.target[self.correct], minlength=len(self.names))
        return hits, np.bincount(self.predicted, minlength=len(self.names))

    def statistics(self) -> dict[str, Statistic]:
        """top5_accuracy for more than 5 classes."""
        found: dict[str, Statistic] = {
            "accuracy": mean_of(self.correct.astype(float)),
            "balanced_accuracy": self._mean_recall,
            "macro_f1": self._mean_f1,
        }
        if len(self.names) > _TOP:
            own = np.take_along_axis(self.estimates, self.target[:, None], 1)
            found["top5_accuracy"] = mean_of(((self.estimates > own).sum(1) < _TOP).astype(float))
        return found

    def _mean_recall(self, weights: Floats) -> Floats:
        there = self._per_class(weights, self.target)
        return mean_where(self._hits(weights), there, there > 0)

    def _mean_f1(self, weights: Floats) -> Floats:
        both = self._per_class(weights, self.target) + self._per_class(weights, self.predicted)
        return mean_f1(self._hits(weights), both)

    def _hits(self, weights: Floats) -> Floats:
        return self._per_class(weights * self.correct, self.target)

    def _per_class(self, weights: Floats, classes: NDArray[np.int64]) -> Floats:
        """Sums of weights by class, B x names."""
        return np.stack([np.bincount(classes, weights=row, minlength=len(self.names)) for row in weights])
