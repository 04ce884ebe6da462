"""What charts, reports and comparisons ask of a set that was evaluated; here, for a task that has none of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Of the weights of samples in some resamples (B x N; how often each was drawn), a metric in each (B).
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width in confidence: of those that hold samples, mean confidence, share that is right, samples."""

    confidence: Floats
    accuracy: Floats
    samples: NDArray[np.int64]

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence and share that is right, over the bins, weighted by samples."""
        return float((np.abs(self.confidence - self.accuracy) * self.samples).sum() / self.samples.sum())


@dataclass(frozen=True)
class ThresholdHint:
    """From which probability on a label should count as there, so that F1 is largest, and F1 then and at 0.5."""

    threshold: float
    f1: float
    f1_at_half: float


@dataclass(frozen=True)
class ScoredSet:
    """What a model made of each sample of a set, beside the truth: all that charts, reports and comparisons ask for.

    The first dimension of `scores` and `truth` counts samples, in the set's order. What is in them only the task's own
    class knows, and answers what it can. The answers here are those of a task that has no such thing.
    """

    names: tuple[str, ...]
    scores: Floats
    truth: Floats

    # What stands above the worst samples in a report; nothing where none is worse than another.
    worst_heading: ClassVar[str] = ""
    # The metric that is the mean of `correct`.
    correct_metric: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Whether each sample is right (N); None where it is not simply right or wrong."""
        return None

    @property
    def sureness(self) -> float | None:
        """How sure the model is of its answers on average, to be compared with the mean of `correct`."""
        return None

    def worst(self, count: int) -> list[int]:
        """The most confident mistakes, or what is farthest off, worst first."""
        return []

    def least_certain(self, count: int) -> list[int]:
        """Samples that are right, those first of which the model was least sure."""
        return []

    def caption(self, index: int) -> tuple[str, str]:
        """What the model says of a sample, and what is true."""
        return "", ""

    def confusion(self) -> NDArray[np.int64] | None:
        """How many samples of each class (rows) are taken for each class (columns)."""
        return None

    def reliability(self) -> Reliability | None:
        """How often the model is right where it says so."""
        return None

    def class_table(self) -> list[dict[str, Any]]:
        """For each class: "name", "samples" that have it, "precision", "recall" and "f1"; None where not defined."""
        return []

    def thresholds(self) -> list[ThresholdHint | None]:
        """For each label what suits this very set best; None for labels that no sample has."""
        return []

    def points(self, count: int) -> list[tuple[str, Floats, Floats]]:
        """The first numbers, `count` at most: name, true and predicted values (N each)."""
        return []

    def decisions(self, count: int) -> list[tuple[str, NDArray[np.bool_], Floats]]:
        """The rarest classes, `count` at most: name, whether a sample has it, and its probability (N each)."""
        return []

    def statistics(self) -> dict[str, Statistic]:
        """The metrics that can be drawn again, as the task defines them."""
        return {}

    def has_targets(self, targets: NDArray[Any]) -> bool:
        """Whether the targets of a LabelledSource are the truth here. ValueError if they are of another form."""
        return bool(np.allclose(targets.reshape(self.truth.shape), self.truth))


def most_confused(matrix: NDArray[np.int64], count: int) -> list[int]:
    """The classes that take part in most mistakes, in their own order; all of them if there are no more."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return sorted(int(each) for each in np.argsort(-mistakes, kind="stable")[:count])
