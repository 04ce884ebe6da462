"""What charts, reports and comparisons ask of a set that was evaluated, and means in resamples of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Scatter plots of predictions that charts and reports draw: of the first numbers of a sample.
MOST_SCATTERS = 4
# What stands below a sample's image: ("predicted", "cat (91 %)"), ("true", "dog").
Caption = list[tuple[str, str]]
# A metric in each of some resamples (B), from how often each drew each sample (B x N).
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width in confidence that hold samples: mean confidence, share that is right, number of samples."""

    confidence: Floats
    accuracy: Floats
    samples: NDArray[np.int64]

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence and share that is right, over the bins, weighted by samples."""
        return float((np.abs(self.confidence - self.accuracy) * self.samples).sum() / self.samples.sum())


@dataclass(frozen=True)
class ThresholdHint:
    """The least probability of a label that is there for the largest F1, and F1 with it and with 0.5."""

    threshold: float
    f1: float
    f1_at_half: float


@dataclass(frozen=True)
class ScoredSet:
    """A model's estimates of all samples of a set and the truth, for charts, reports and comparisons.

    The first dimension of `estimates` and `truth` counts samples in the set's order. Only the task's own subclass knows
    what they hold, and overrides what it can answer; the answers here mean that there is no such thing.
    """

    names: tuple[str, ...]
    estimates: Floats
    truth: Floats

    # Heading of the worst samples in a report; empty if none is worse than another.
    worst_heading: ClassVar[str] = ""
    # Heading of its `correct_examples`; empty if it has none.
    correct_heading: ClassVar[str] = ""
    # The plural of what "samples" of the class table counts; empty if it is samples.
    counted: ClassVar[str] = ""
    # The metric that is the mean of `correct`.
    correct_metric: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.estimates)

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Whether each sample is right (N); None if samples are not simply right or wrong."""
        return None

    @property
    def sureness(self) -> float | None:
        """Mean confidence of the model, to compare with the mean of `correct`."""
        return None

    def worst(self, count: int) -> list[int]:
        """The most confident mistakes, or what is farthest off, worst first."""
        return []

    def least_certain(self, count: int) -> list[int]:
        """Samples that are right, the least sure first."""
        return []

    def correct_examples(self, count: int) -> list[int]:
        """Samples that are right without doubt, of as many classes as possible; for numbers the nearest ones."""
        return []

    def caption(self, index: int) -> Caption:
        """The model's answer for a sample beside the true one: what each part is, and its text."""
        return []

    def confusion(self) -> NDArray[np.int64] | None:
        """How many samples of each class (rows) are predicted as each class (columns)."""
        return None

    def reliability(self) -> Reliability | None:
        """How often the model is right at each confidence."""
        return None

    def class_table(self) -> list[dict[str, Any]]:
        """For each class: "name", "samples" that have it, "precision", "recall" and "f1"; None where not defined."""
        return []

    def thresholds(self) -> list[ThresholdHint | None]:
        """The best threshold of each label on this very set; None for labels that no sample has."""
        return []

    def points(self, count: int) -> list[tuple[str, Floats, Floats]]:
        """The first numbers, `count` at most: name, true and predicted values (N each)."""
        return []

    def decisions(self, count: int) -> list[tuple[str, NDArray[np.bool_], Floats]]:
        """The rarest classes, `count` at most: name, whether a sample has it, and its probability, for each sample of
        which that is known."""
        return []

    def statistics(self) -> dict[str, Statistic]:
        """The metrics that can be resampled, as the task defines them."""
        return {}

    def has_targets(self, targets: NDArray[Any]) -> bool:
        """Whether the targets of a LabelledSource are the truth here. ValueError if they have another shape."""
        return bool(np.allclose(targets.reshape(self.truth.shape), self.truth, equal_nan=True))


def most_confused(matrix: NDArray[np.int64], count: int) -> list[int]:
    """The `count` classes that are in most mistakes, in their own order."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return sorted(int(each) for each in np.argsort(-mistakes, kind="stable")[:count])


def mean_of(values: Floats) -> Statistic:
    """The mean of a value of each sample (N)."""
    return lambda weights: np.asarray(weights @ values / weights.sum(1))


def mean_where(parts: Floats, wholes: Floats, usable: NDArray[np.bool_]) -> Floats:
    """The mean share part / whole over those that are usable, in each resample (B x names each, to B); 0 if none is."""
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=usable)
    return np.asarray(shares.sum(1) / np.maximum(usable.sum(1), 1))


def mean_f1(hits: Floats, both: Floats) -> Floats:
    """The mean F1 in each resample (B), over classes that a sample has or is predicted to have.

    `hits` (B x names) are the samples of each class that are right, `both` those that have it plus those predicted.
    """
    return mean_where(2 * hits, both, both > 0)
