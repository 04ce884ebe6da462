"""The columns of a table as text, from any kind of file, and a column as numbers."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.numerals import Reading, appearance, readings
from ddp_ft.errors import UserError, listed

# Between the values of a list in one cell: ASCII's record separator. In the values themselves it becomes a space.
OF_LIST = "\x1e"
LISTED = 5  # rows or lines, in a message about many
# What programs and people write for a cell without a value, in lower case and without signs around it: pandas, R,
# spreadsheets, databases; or signs alone.
MISSING = {"nan", "na", "n/a", "n.a", "n.d", "null", "none", "nil", "nat", "pd.na", "np.nan"}
_AROUND = "#<>()[]{}-.!?'\" "
_SIGNS_ALONE = re.compile(r"[-\u2013\u2014.?'\" ]*|\[\]|\{\}|\(\)|<>|\\N")
_OF_SPREADSHEETS = {"#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!"}


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

    def without(self, rows: Sequence[int]) -> "Table":
        """The other rows."""
        left_out = set(rows)
        kept = [row for row in range(len(self)) if row not in left_out]
        columns = {name: [cells[row] for row in kept] for name, cells in self.columns.items()}
        return Table(self.path, columns, [self.numbers[row] for row in kept])

    def filled(self, column: str, hint: str = "") -> list[str]:
        """The cells of the column. UserError if some are empty."""
        cells = self.columns[column]
        if empty := [row for row, cell in enumerate(cells) if not cell]:
            raise self.error(empty, f"cells of column '{column}' are empty", cells, hint)
        return cells


def cell_of_list(values: Iterable[Any]) -> str:
    """The values as texts, in one cell."""
    return OF_LIST.join(" ".join(str(value).splitlines()) for value in values)


def list_of_cell(cell: str) -> list[str]:
    """The values of a cell that holds a list."""
    return cell.split(OF_LIST) if cell else []


def is_missing(cell: str) -> bool:
    """Whether the cell is empty, or one of the words for that."""
    word = cell.lower()
    return bool(_SIGNS_ALONE.fullmatch(cell)) or word.strip(_AROUND) in MISSING or word in _OF_SPREADSHEETS


def read_numbers(table: Table, column: str) -> NDArray[np.float32]:
    """The column's cells, as `readings` reads them; a missing one is NaN. UserError if some are no finite numbers, or
    if there are two ways to read them."""
    cells = table.columns[column]
    known = [row for row, cell in enumerate(cells) if not is_missing(cell)]
    ways = readings([cells[row] for row in known])
    values = np.full(len(cells), np.nan)
    values[known] = ways[0].values
    if bad := [row for row in known if math.isnan(values[row])]:
        look = appearance([cells[row] for row in bad])
        hint = f"They look like {look}: write all of them as plain numbers, such as 1234.5." if look else ""
        if any("," in cells[row] for row in bad):
            hint += "\nIf a cell has several labels: --set data.separator=,"
        raise table.error(bad, f"cells of column '{column}' are no finite numbers", cells, hint)
    if len(ways) > 1:
        raise two_ways(table, column, ways)
    return values.astype(np.float32)


def two_ways(table: Table, column: str, ways: Sequence[Reading], otherwise: str = "") -> UserError:
    """The error for a column whose cells are different numbers, depending on how they are read; `otherwise` ends its
    hint."""
    known = [cell for cell in table.columns[column] if not is_missing(cell)]
    first, second = ways[0], ways[1]
    row = int(np.flatnonzero(first.values != second.values)[0])
    read = f"{first.values[row]:.9g} ({first.style}) or {second.values[row]:.9g} ({second.style})"
    hint = "Write a point before decimals and nothing between thousands."
    return UserError(f"{table.path}: {known[row]!r} in column '{column}' may be {read}.", f"{hint} {otherwise}".strip())
