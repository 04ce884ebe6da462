"""The columns of a table as text, from any kind of file, and a column as numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_ft.errors import UserError, listed

LISTED = 5  # rows or lines, in a message about many


@dataclass
class Table:
    """The chosen columns, every cell as text without spaces around it; "" is an empty cell.

    `numbers` are the rows' places in the file: lines (CSV; the header is line 1) or rows (Parquet; from 1).
    """

    path: Path
    columns: dict[str, list[str]]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def error(
        self, rows: Sequence[int], problem: str, shown: Sequence[str], hint: str = "", limit: int = LISTED
    ) -> UserError:
        """The error for these rows: how many there are, and the places and `shown` of the first ones."""
        kind = "row" if self.path.suffix.lower() == ".parquet" else "line"
        lines = listed([f"{kind} {self.numbers[row]}: {shown[row]!r}" for row in rows], limit)
        return UserError(f"{self.path}: {len(rows)} {problem}:", "\n".join([*lines, hint] if hint else lines))

    def filled(self, column: str, hint: str = "") -> list[str]:
        """The cells of the column. UserError if some are empty."""
        cells = self.columns[column]
        if empty := [row for row, cell in enumerate(cells) if not cell]:
            raise self.error(empty, f"cells of column '{column}' are empty", cells, hint)
        return cells


def number_in(cell: str) -> float:
    """The cell as a number; NaN for what is no finite float32 and for 1_000, which Python would take."""
    try:
        value = math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else math.nan


def read_numbers(table: Table, column: str) -> NDArray[np.float32]:
    """The column's cells. UserError if some are no finite numbers."""
    cells = table.columns[column]
    values = np.array([number_in(cell) for cell in cells])
    if bad := np.flatnonzero(np.isnan(values)).tolist():
        raise table.error(bad, f"cells of column '{column}' are no finite numbers", cells)
    return values.astype(np.float32)
