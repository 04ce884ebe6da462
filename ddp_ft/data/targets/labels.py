"""Any number of labels for each sample."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LABELS
from ddp_ft.data.cells import OF_LIST, list_of_cell
from ddp_ft.data.targets.base import CLASS, DROP, MASK, TargetColumns, TargetKind
from ddp_ft.errors import UserError, shortened

_MINUS_ONE = {"-1", "-1.0"}
_FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "no", "n", "f"), 0.0),
    **dict.fromkeys(("1", "1.0", "true", "yes", "y", "t"), 1.0),
}


class Labels(TargetKind):
    """Targets are float32 (N, labels), 1 where a sample has the label, NaN where that is unknown, and 0 elsewhere.

    A table has them in one column, joined by the separator, or in a column of 0 and 1 for each label.
    """

    name, called, keeps_strata, can_be_masked = LABELS, "classes", True, True

    def strata(self, targets: NDArray[Any], bins: int) -> NDArray[np.bool_]:
        """The labels; a sample may have none."""
        return targets > 0.5

    def counts(self, targets: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
        """Of each label; a sample counts for all that it has."""
        return np.asarray((targets > 0.5).sum(0))

    def balanced(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """1 / (number of samples with the rarest of the sample's labels); without any, the smallest of these."""
        present = targets > 0.5
        if not present.any():
            raise UserError("--sampling balanced: no sample has a label.", "Use --sampling natural.")
        counts = np.maximum(present.sum(axis=0), 1)  # a label that no sample has gives its weight to none
        weights: NDArray[np.float64] = np.where(present, 1 / counts, 0.0).max(axis=1)
        return np.where(weights > 0, weights, weights[weights > 0].min())

    def check_candidates(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> list[str]:
        """The labels that no candidate has."""
        lost = self.absent(targets, names)
        return [f"Labels that no image for training has: {shortened(lost)}."] if lost else []

    def describe(self, names: Sequence[str]) -> str:
        """With the number of labels."""
        return f"any number of {len(names)} labels each"

    def looks_like(self, columns: TargetColumns) -> bool:
        """One column: if a cell holds the separator, or a list. Several: if all known cells are 0 or 1.

        UserError for -1 beside them, which may be a number too, unless data.unknown is given."""
        if len(columns.names) > 1:
            return self._are_flags(columns)
        between = [OF_LIST, *([columns.separator] if columns.separator else [])]
        return any(each in cell for cell in columns.first for each in between)

    def _are_flags(self, columns: TargetColumns) -> bool:
        cells = {cell.lower() for name in columns.names for cell in columns.table.columns[name]}
        rest = {cell for cell in cells if cell not in _FLAGS and not columns.is_missing(cell)}
        if rest - _MINUS_ONE:
            return False
        if rest and columns.unknown not in (DROP, MASK):
            message = f"Columns {shortened(columns.names)} of {columns.table.path} hold -1 beside 0 and 1."
            hint = "If it means unknown: --set data.unknown=mask (or drop). If it is a number: --task regression."
            raise UserError(message, hint)
        return True

    def is_unknown(self, cell: str, columns: TargetColumns) -> bool:
        """Of several columns also -1. Of one, a word for a missing value among the labels; empty: there is none."""
        if len(columns.names) > 1:
            return _is_unknown(cell, columns)
        return any(map(columns.is_missing, _labels_in(cell, columns.separator)))

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The labels in order, or the columns as they are given."""
        if len(columns.names) > 1:
            return columns.names, _flags(columns, columns.names)
        labels = _split_cells(columns)
        names = tuple(sorted({label for each in labels for label in each or ()}))
        if not names:
            column, path = columns.names[0], columns.table.path
            raise UserError(f"Column '{column}' of {path} has no labels: all its cells are empty.")
        return names, _one_row_each(labels, names)

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[np.float32]:
        """float32 (N, labels). A single column holds all labels, unless its name is the only label."""
        if len(columns.names) > 1 or columns.names == names:
            self._check_columns(columns, names)
            return _flags(columns, names)
        labels = _split_cells(columns)
        if unknown := sorted({label for each in labels for label in each or ()} - set(names)):
            self._refuse(columns, unknown, names)
        return _one_row_each(labels, names)


def _is_unknown(cell: str, columns: TargetColumns) -> bool:
    return columns.is_missing(cell) or (cell in _MINUS_ONE and columns.unknown != CLASS)


def _labels_in(cell: str, separator: str) -> list[str]:
    listed = [part for each in list_of_cell(cell) for part in (each.split(separator) if separator else [each])]
    return [label for part in listed if (label := part.strip())]


def _split_cells(columns: TargetColumns) -> list[list[str] | None]:
    """The labels in each cell; None for one that has an unknown label, so that nothing is known of its sample."""
    if not columns.separator:
        raise UserError("data.separator is empty.", "Expected what is between two labels, such as ';'.")
    found: list[list[str] | None] = []
    for cell in columns.first:
        labels = _labels_in(cell, columns.separator)
        found.append(None if any(map(columns.is_missing, labels)) else labels)
    return found


def _one_row_each(labels: Sequence[Sequence[str] | None], names: Sequence[str]) -> NDArray[np.float32]:
    numbers = {name: number for number, name in enumerate(names)}
    values = np.zeros((len(labels), len(names)), np.float32)
    for row, each in zip(values, labels, strict=True):
        if each is None:
            row[:] = np.nan
        else:
            row[[numbers[label] for label in each]] = 1
    return values


def _flags(columns: TargetColumns, names: Sequence[str]) -> NDArray[np.float32]:
    table = columns.table
    values = np.empty((len(table), len(names)), np.float32)
    for place, name in enumerate(names):
        cells = table.columns[name]
        flags = [math.nan if _is_unknown(cell, columns) else _FLAGS.get(cell.lower()) for cell in cells]
        if bad := [row for row, flag in enumerate(flags) if flag is None]:
            raise table.error(bad, f"cells of column '{name}' are neither 0 nor 1", cells)
        values[:, place] = flags
    return values
