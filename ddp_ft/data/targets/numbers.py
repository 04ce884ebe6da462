"""Numbers for each sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import NUMBERS
from ddp_ft.data.cells import Table, read_numbers, two_ways
from ddp_ft.data.numerals import number_in, readings
from ddp_ft.data.targets.base import TargetColumns, TargetKind
from ddp_ft.errors import UserError, shortened
from ddp_ft.texts import plural


class Numbers(TargetKind):
    """Targets are float32 (N, names), one column of a table each."""

    name, called, can_be_mixed = NUMBERS, "numbers", False

    def strata(self, targets: NDArray[Any], bins: int) -> NDArray[np.int64]:
        """The number's bin, of `bins` that are equally frequent; of several numbers the first one's."""
        values, bins = targets[:, 0].astype(np.float64), max(bins, 1)
        edges = np.quantile(values, np.arange(1, bins) / bins)
        return np.searchsorted(edges, values, side="right").astype(np.int64)

    def check_training(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> None:
        """Raise UserError for a number that is the same for all."""
        same = (targets == targets[0]).all(0).tolist()
        if constant := [name for name, is_same in zip(names, same, strict=True) if is_same]:
            hint = "There is nothing to learn from it; leave it out of data.target."
            raise UserError(f"{path}: the same number for all training images: {shortened(constant)}.", hint)

    def looks_like(self, columns: TargetColumns) -> bool:
        """One column: if most known cells are numbers without a unit, and one has a fraction. Several always. UserError
        for cells that are different numbers, depending on how they are read."""
        if len(columns.names) > 1:
            return True
        known = columns.known()
        ways = readings(known)
        if 2 * ways[0].count <= len(known) or ways[0].unit or not any(way.has_fraction for way in ways):
            return False
        if len(ways) > 1:
            raise two_ways(columns.table, columns.names[0], ways, "If these are classes: --task single-label.")
        return True

    def notes(self, columns: TargetColumns) -> list[str]:
        """Of each column whose numbers have another form than 1234.5."""
        found = []
        for name in columns.names:
            cells = [cell for cell in columns.table.columns[name] if not columns.is_missing(cell)]
            way = readings(cells)[0]
            if way.style:
                unit = f" and the unit {way.unit}" if way.unit else ""
                shown = next((row for row, cell in enumerate(cells) if number_in(cell) != way.values[row]), 0)
                example = f"{cells[shown]!r} is {way.values[shown]:.9g}"
                found.append(f"Column '{name}' is read as numbers with {way.style}{unit}: {example}.")
            if fill := _fill_value(way.values):
                rows = plural(int((way.values == fill).sum()), "row")
                found.append(
                    f"Column '{name}' has {fill:g} in {rows}, far from all other "
                    "numbers. If it means unknown: empty these cells, and --set data.unknown=drop."
                )
        return found

    def doubt(self, columns: TargetColumns) -> str:
        """That several columns, of which most cells are 0 or 1, may be labels."""
        cells = [cell for name in columns.names for cell in columns.table.columns[name]]
        are_flags = len(columns.names) > 1 and 10 * sum(cell in ("0", "1") for cell in cells) >= 6 * len(cells)
        return (
            "Most cells are 0 or 1: if these are labels, --task multi-label names the other cells." if are_flags else ""
        )

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The columns as given."""
        return columns.names, _stacked(columns.table, columns.names)

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[np.float32]:
        """float32 (N, names). A single number may come from a column of any name."""
        if len(columns.names) == len(names) == 1:
            return _stacked(columns.table, columns.names)
        self._check_columns(columns, names)
        return _stacked(columns.table, names)


def _fill_value(values: NDArray[np.float64]) -> float:
    """A number of nines, such as -999, that lies further from all others than these from each other; 0 if none does."""
    known = values[~np.isnan(values)]
    for end in (known.min(initial=0), known.max(initial=0)):
        others = known[known != end]
        is_nines = set(f"{abs(end):g}") == {"9"} and abs(end) > 9
        if is_nines and others.size > 1 and np.abs(others - end).min() > np.ptp(others):
            return float(end)
    return 0.0


def _stacked(table: Table, names: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([read_numbers(table, name) for name in names], axis=1)
