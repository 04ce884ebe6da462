"""The base of all kinds of targets, with what holds for one that has no classes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import UNKNOWN
from ddp_ft.data.cells import Table, is_missing
from ddp_ft.errors import UserError, shortened

# What data.unknown may be.
FAIL, DROP, MASK, CLASS = UNKNOWN


@dataclass(frozen=True)
class TargetColumns:
    """The columns of a table that hold targets, by `names`; `separator` is between the labels in a cell; `unknown` is
    data.unknown."""

    table: Table
    names: tuple[str, ...]
    separator: str
    unknown: str = FAIL

    @property
    def first(self) -> list[str]:
        """The cells of the first column, often the only one."""
        return self.table.columns[self.names[0]]

    def is_missing(self, cell: str) -> bool:
        """Whether it is empty, or a word for that unless such words are classes."""
        return is_missing(cell) and (not cell or self.unknown != CLASS)

    def known(self) -> list[str]:
        """The cells of the first column that are not missing."""
        return [cell for cell in self.first if not self.is_missing(cell)]


class TargetKind(ABC):
    """A kind of targets. `targets` are as in LabelledSource, one row for each sample; `names` are those of Schema.

    The defaults are those of a kind without classes: all samples are in one stratum, it has no counts, and cannot be
    balanced. Only reading a table has no default.
    """

    # As in Schema, and in messages.
    name: str
    # What the names are, in messages.
    called = "names"
    # Whether every stratum that a sample is in must stay in training, as classes must.
    keeps_strata = False
    # Whether mixup and cutmix may mix two targets.
    can_be_mixed = True
    # Whether an unknown target can count for nothing while others of the sample count.
    can_be_masked = False

    def strata(self, targets: NDArray[Any], bins: int) -> NDArray[Any]:
        """The strata to divide in proportion between the sides of a split: int64 (N,), or bool (N, strata) if a sample
        may be in several. `bins` is how many to make if there is a choice."""
        return np.zeros(len(targets), np.int64)

    def counts(self, targets: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64] | None:
        """The number of samples of each class (int64, one for each name); None if there are no classes."""
        return None

    def absent(self, targets: NDArray[Any], names: Sequence[str]) -> list[str]:
        """The classes that no sample is of."""
        counts = self.counts(targets, names)
        return [] if counts is None else [name for name, count in zip(names, counts.tolist(), strict=True) if not count]

    def balanced(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Weights for drawing samples (N) that make classes equally frequent. UserError without classes."""
        hint = "Use --sampling natural, or --sampling weighted with a column of weights (data.weight)."
        raise UserError(f"--sampling balanced needs classes, but the targets are {self.name}.", hint)

    def check_candidates(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> list[str]:
        """Notes on a table's candidates for training, before some are held back. UserError if they lack classes."""
        return []

    def check_training(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> None:  # noqa: B027  (most have none)
        """Raise UserError if there is nothing to learn from what is left for training."""

    def describe(self, names: Sequence[str]) -> str:
        """The targets of an image in a few words."""
        return self.name

    def looks_like(self, columns: TargetColumns) -> bool:
        """Whether the columns look like this kind, if no task is given. UserError if they may be of another one too."""
        return False

    def unknown_cells(self, columns: TargetColumns) -> dict[int, str]:
        """The rows in which a target is unknown, and the first such cell of each."""
        found: dict[int, str] = {}
        for name in columns.names:
            for row, cell in enumerate(columns.table.columns[name]):
                if self.is_unknown(cell, columns):
                    found.setdefault(row, cell)
        return dict(sorted(found.items()))

    def is_unknown(self, cell: str, columns: TargetColumns) -> bool:
        """Whether a cell holds no target."""
        return columns.is_missing(cell)

    def doubt(self, columns: TargetColumns) -> str:
        """What the cells may be instead, a sentence or more; empty if that is clear."""
        return ""

    def notes(self, columns: TargetColumns) -> list[str]:
        """How the cells were read, if they are not written plainly."""
        return []

    @abstractmethod
    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[Any]]:
        """The names in the columns, and the targets. UserError for cells that do not fit."""

    @abstractmethod
    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[Any]:
        """The targets with the names of a trained model. UserError for others, and for cells that do not fit."""

    def _check_columns(self, columns: TargetColumns, names: Sequence[str]) -> None:
        """Raise UserError unless there is one column for each name."""
        if unknown := [name for name in columns.names if name not in names]:
            self._refuse(columns, unknown, names)
        if missing := [name for name in names if name not in columns.names]:
            raise UserError(f"data.target lacks columns that the model predicts: {shortened(missing)}.")

    def _refuse(self, columns: TargetColumns, unknown: Sequence[str], names: Sequence[str]) -> NoReturn:
        hint = f"The model's {self.called}: {shortened(names)}."
        raise UserError(f"{columns.table.path} has targets that the model does not know: {shortened(unknown)}.", hint)
