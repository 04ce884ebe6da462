"""What sets share whose estimates are probabilities, and whose samples are right or wrong."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, Reliability, ScoredSet
from ddp_ft.texts import percent

# A label is predicted from this probability on.
THRESHOLD = 0.5
# Bins of the reliability diagram and of the metric `ece`, as in arXiv 1706.04599.
BINS = 15


class ScoredProbabilities(ScoredSet, ABC):
    """`estimates` are probabilities and `truth` is 0, 1 or, for several labels, NaN if unknown; N x names each."""

    worst_heading: ClassVar[str] = "Worst mistakes: least probability for the truth"
    correct_heading: ClassVar[str] = "Correct and most certain, of different classes"

    @property
    @abstractmethod
    def correct(self) -> NDArray[np.bool_]:
        """Whether each sample is right."""

    @property
    @abstractmethod
    def confidence(self) -> Floats:
        """How sure the model is of each answer, 0 to 1."""

    @property
    @abstractmethod
    def error(self) -> Floats:
        """How far off each sample is: the probability that is missing from the truth."""

    @abstractmethod
    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each class the samples that are rightly predicted to have it, and all that are predicted to."""

    @abstractmethod
    def reliability(self) -> Reliability:
        """How often the model is right at each confidence (arXiv 1706.04599)."""

    @cached_property
    def target(self) -> NDArray[np.int64]:
        """The true class of each sample, if it has one."""
        return np.asarray(np.argmax(self.truth, 1), dtype=np.int64)

    def worst(self, count: int) -> list[int]:
        """The mistakes that are farthest off."""
        wrong = np.flatnonzero(~self.correct)
        return [int(index) for index in wrong[np.argsort(-self.error[wrong], kind="stable")[:count]]]

    def least_certain(self, count: int) -> list[int]:
        """By rising confidence."""
        right = np.flatnonzero(self.correct)
        return [int(index) for index in right[np.argsort(self.confidence[right], kind="stable")[:count]]]

    def correct_examples(self, count: int) -> list[int]:
        """In turns the most certain sample of each class, the most frequent classes first."""
        there = self.truth > THRESHOLD
        frequent = np.argsort(-there.sum(0), kind="stable")[:count]
        of_class = [np.flatnonzero(self.correct & there[:, c]) for c in frequent]
        ranked = [rows[np.argsort(-self.confidence[rows], kind="stable")][:count] for rows in of_class]
        turns = [int(rows[turn]) for turn in range(count) for rows in ranked if turn < len(rows)]
        return list(dict.fromkeys(turns))[:count]

    def with_probability(self, index: int, name: int) -> str:
        """One of the names, and how probable it is for a sample."""
        return f"{self.names[name]} ({percent(self.estimates[index, name])})"

    def class_table(self) -> list[dict[str, Any]]:
        """Shares from 0 to 1."""
        there, (hits, claimed) = np.nansum(self.truth, 0), self.counts()
        return [
            {
                "name": name, "samples": int(there[c]), "precision": _share(hits[c], claimed[c]),
                "recall": _share(hits[c], there[c]), "f1": _share(2 * hits[c], claimed[c] + there[c]),
            }
            for c, name in enumerate(self.names)
        ]  # fmt: skip

    def decisions(self, count: int) -> list[tuple[str, NDArray[np.bool_], Floats]]:
        """Of the classes that any sample has."""
        counts, known = np.nansum(self.truth, 0), ~np.isnan(self.truth)
        rarest = [int(c) for c in np.argsort(counts, kind="stable") if counts[c]][:count]
        return [(self.names[c], self.truth[known[:, c], c] > THRESHOLD, self.estimates[known[:, c], c]) for c in rarest]

    def has_targets(self, targets: NDArray[Any]) -> bool:
        """As in `ScoredSet`; targets may be class numbers too."""
        return np.array_equal(targets, self.target) if targets.ndim == 1 else super().has_targets(targets)


def truth_of(target: NDArray[Any], estimates: Floats) -> Floats:
    """Targets as 0 and 1, N x names as the estimates; class numbers (int64, N) are spread out."""
    if target.ndim > 1:
        return np.asarray(target, dtype=np.float64)
    truth = np.zeros_like(estimates)
    np.put_along_axis(truth, target[:, None], 1.0, 1)
    return truth


def binned(sure: Floats, right: Floats) -> Reliability:
    """The bins of answers, from the confidence of each and whether it is right (1 or 0)."""
    places = np.clip((sure * BINS).astype(int), 0, BINS - 1)
    samples = np.bincount(places, minlength=BINS)
    held = samples > 0
    means = [np.bincount(places, weights=each, minlength=BINS)[held] / samples[held] for each in (sure, right)]
    return Reliability(means[0], means[1], samples[held])


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
