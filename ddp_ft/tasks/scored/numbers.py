"""Sets of samples of one or several numbers each."""

from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from ddp_ft.tasks.scored.base import Caption, Floats, ScoredSet, Statistic, mean_of
from ddp_ft.texts import readable


class ScoredNumbers(ScoredSet):
    """`estimates` and `truth` are in the target's units, N x names each. None is simply right or wrong."""

    worst_heading: ClassVar[str] = "Largest errors"
    correct_heading: ClassVar[str] = "Smallest errors"

    @cached_property
    def error(self) -> Floats:
        """The largest distance of a sample's numbers, in standard deviations of the truth."""
        spread = self.truth.std(0)
        return np.asarray(np.max(np.abs(self.estimates - self.truth) / np.where(spread > 0, spread, 1), 1))

    def worst(self, count: int) -> list[int]:
        """Those that are farthest off."""
        return [int(index) for index in np.argsort(-self.error, kind="stable")[:count]]

    def correct_examples(self, count: int) -> list[int]:
        """Those that are nearest, nearest first."""
        return [int(index) for index in np.argsort(self.error, kind="stable")[:count]]

    def caption(self, index: int) -> Caption:
        """The numbers, with their names if there are several."""
        return [("predicted", self._text(self.estimates[index])), ("true", self._text(self.truth[index]))]

    def _text(self, values: Floats) -> str:
        if len(self.names) == 1:
            return readable(values[0])
        return ", ".join(f"{name} {readable(value)}" for name, value in zip(self.names, values, strict=True))

    def points(self, count: int) -> list[tuple[str, Floats, Floats]]:
        """In the target's units."""
        return [(name, self.truth[:, c], self.estimates[:, c]) for c, name in enumerate(self.names[:count])]

    def statistics(self) -> dict[str, Statistic]:
        """For several numbers the means, and each one's mean error."""
        off = self.estimates - self.truth
        # Around the mean: the square of a large mean would leave few digits.
        apart = self.truth - self.truth.mean(0)
        found: dict[str, Statistic] = {
            "mae": mean_of(np.abs(off).mean(1)),
            "rmse": lambda weights: np.sqrt(weights @ off**2 / weights.sum(1)[:, None]).mean(1),
            "r2": partial(_mean_r2, off, apart),
        }
        if len(self.names) > 1:
            found |= {f"mae/{name}": mean_of(np.abs(off[:, c])) for c, name in enumerate(self.names)}
        return found


def _mean_r2(off: Floats, apart: Floats, weights: Floats) -> Floats:
    """0 for a number that is the same in the whole resample, as in the task."""
    spread = weights @ apart**2 - (weights @ apart) ** 2 / weights.sum(1)[:, None]
    usable = spread > 1e-12 * (weights @ apart**2 + 1e-300)
    explained = 1 - np.divide(weights @ off**2, spread, out=np.ones_like(spread), where=usable)
    return np.asarray(explained.mean(1))
