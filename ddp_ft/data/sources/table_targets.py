"""The targets of a table: which kind they are, and the cells as numbers."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.tasks import KINDS_OF_TASK
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, Schema
from ddp_ft.data.sources.table_file import Table
from ddp_ft.errors import UserError, shortened

# Whole numbers are taken as classes if there are no more than these, each in two rows or more on average.
_MOST_NUMBERED_CLASSES = 20
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
_FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class Targets:
    """`values` are as in LabelledSource; `note` says what they were taken for, if that was guessed."""

    schema: Schema
    values: NDArray[Any]
    note: str = ""


def find_targets(table: Table, columns: Sequence[str], separator: str, task: str) -> Targets:
    """The targets in those columns, of the kind that `task` wants; for "auto" of the kind that they look like.

    One column: several labels if a cell holds the separator; numbers if most cells are numbers and one has a
    fraction; else one label, but whole numbers only if they are few. Several columns: several labels if all cells
    are 0 or 1, else numbers. Raises UserError where that is no answer, and for cells that do not fit.
    """
    kind = KINDS_OF_TASK[task][0] if task in KINDS_OF_TASK else _guess(table, columns, separator)
    if kind == LABEL:
        found = _one_label(table, columns)
    elif kind == LABELS:
        found = _flags(table, columns) if len(columns) > 1 else _several_labels(table, columns[0], separator)
    else:
        found = Targets(Schema(NUMBERS, tuple(columns)), _numbers(table, columns))
    note = "" if task in KINDS_OF_TASK else _note(columns, found.schema)
    return Targets(found.schema, found.values, note)


def known_targets(table: Table, columns: Sequence[str], separator: str, schema: Schema) -> NDArray[Any]:
    """The targets in those columns, numbered as a trained model has them.

    Raises UserError for cells that do not fit, and for classes or columns that are not the model's.
    """
    if schema.kind == LABEL:
        return _numbered(table, columns, schema.names)
    if schema.kind == LABELS and len(columns) == 1 and columns != schema.names:
        labels = _split_cells(table, columns[0], separator)
        _refuse_unknown(table, sorted({label for each in labels for label in each} - set(schema.names)), schema)
        return _one_row_each(labels, schema.names)
    if schema.kind == NUMBERS and len(columns) == len(schema.names) == 1:
        return _numbers(table, columns)  # whatever the column is called here
    _refuse_unknown(table, [name for name in columns if name not in schema.names], schema)
    if missing := [name for name in schema.names if name not in columns]:
        raise UserError(f"data.target lacks columns that the model predicts: {shortened(missing)}.")
    return _flags(table, schema.names).values if schema.kind == LABELS else _numbers(table, schema.names)


def _guess(table: Table, columns: Sequence[str], separator: str) -> str:
    if len(columns) > 1:
        flags = all(cell.lower() in _FLAGS for name in columns for cell in table.columns[name])
        return LABELS if flags else NUMBERS
    cells = table.columns[columns[0]]
    if separator and any(separator in cell for cell in cells):
        return LABELS
    numbers = [number for number in map(_number, cells) if not math.isnan(number)]
    if 2 * len(numbers) > len(cells) and any(number != math.floor(number) for number in numbers):
        return NUMBERS
    if all(map(_WHOLE.fullmatch, cells)):
        _check_few(table, columns[0])
    return LABEL


def _check_few(table: Table, column: str) -> None:
    distinct = len(set(map(_plain, table.columns[column])))
    if distinct > _MOST_NUMBERED_CLASSES or 2 * distinct > len(table):
        raise UserError(
            f"Column '{column}' of {table.path} has {distinct} different whole numbers in {len(table)} rows: "
            "they may be classes or quantities.",
            "Say which: --task single-label or --task regression.",
        )


def _note(columns: Sequence[str], schema: Schema) -> str:
    what = {
        LABEL: f"one of {len(schema.names)} classes for each picture (single-label)",
        LABELS: f"any of {len(schema.names)} labels for each picture (multi-label)",
        NUMBERS: "numbers (regression)",
    }[schema.kind]
    return f"{_named(columns)} taken as {what}; --task can say otherwise."


def _named(columns: Sequence[str]) -> str:
    return f"Column '{columns[0]}' is" if len(columns) == 1 else f"Columns {shortened(columns)} are"


def _label_cells(table: Table, columns: Sequence[str]) -> list[str]:
    if len(columns) > 1:
        hint = "Name one column, or say --task multi-label or --task regression."
        raise UserError(f"data.target names {len(columns)} columns; one label for each picture is in one.", hint)
    cells = table.columns[columns[0]]
    if empty := [row for row, cell in enumerate(cells) if not cell]:
        hint = "Fill them in or remove the rows. If an empty cell means that no label is there: --task multi-label."
        raise table.error(empty, f"cells of column '{columns[0]}' are empty", cells, hint)
    return cells


def _one_label(table: Table, columns: Sequence[str]) -> Targets:
    cells = _label_cells(table, columns)
    # Parquet and spreadsheets write the same whole number as 3 or 3.0.
    if all(map(_WHOLE.fullmatch, cells)):
        cells = list(map(_plain, cells))
    names = sorted(set(cells))
    numbers = {name: number for number, name in enumerate(names)}
    return Targets(Schema(LABEL, tuple(names)), np.array([numbers[cell] for cell in cells], np.int64))


def _plain(cell: str) -> str:
    return cell.partition(".")[0] if _WHOLE.fullmatch(cell) else cell


def _numbered(table: Table, columns: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(names)}
    cells = [cell if cell in numbers else _plain(cell) for cell in _label_cells(table, columns)]
    _refuse_unknown(table, sorted(set(cells) - set(names)), Schema(LABEL, tuple(names)))
    return np.array([numbers[cell] for cell in cells], np.int64)


def _refuse_unknown(table: Table, unknown: Sequence[str], schema: Schema) -> None:
    if unknown:
        hint = f"The model's {'numbers' if schema.kind == NUMBERS else 'classes'}: {shortened(schema.names)}."
        raise UserError(f"{table.path} has targets that the model does not know: {shortened(unknown)}.", hint)


def _several_labels(table: Table, column: str, separator: str) -> Targets:
    labels = _split_cells(table, column, separator)
    names = tuple(sorted({label for each in labels for label in each}))
    if not names:
        raise UserError(f"Column '{column}' of {table.path} has no labels: all its cells are empty.")
    return Targets(Schema(LABELS, names), _one_row_each(labels, names))


def _split_cells(table: Table, column: str, separator: str) -> list[list[str]]:
    if not separator:
        raise UserError("data.separator is empty.", "Say what stands between two labels, such as ';'.")
    cells = table.columns[column]
    return [[label.strip() for label in cell.split(separator) if label.strip()] for cell in cells]


def _one_row_each(labels: Sequence[Sequence[str]], names: Sequence[str]) -> NDArray[np.float32]:
    numbers = {name: number for number, name in enumerate(names)}
    values = np.zeros((len(labels), len(names)), np.float32)
    for row, each in zip(values, labels, strict=True):
        row[[numbers[label] for label in each]] = 1
    return values


def _flags(table: Table, columns: Sequence[str]) -> Targets:
    values = np.empty((len(table), len(columns)), np.float32)
    for place, name in enumerate(columns):
        cells = table.columns[name]
        flags = [_FLAGS.get(cell.lower()) for cell in cells]
        if bad := [row for row, flag in enumerate(flags) if flag is None]:
            raise table.error(bad, f"cells of column '{name}' are neither 0 nor 1", cells)
        values[:, place] = flags
    return Targets(Schema(LABELS, tuple(columns)), values)


def _number(cell: str) -> float:
    """NaN for what is no finite number; Python would also take 1_000."""
    try:
        value = math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else math.nan


def read_numbers(table: Table, column: str) -> NDArray[np.float32]:
    """The column's cells. Raises UserError for those that are no finite numbers."""
    cells = table.columns[column]
    values = np.array([_number(cell) for cell in cells])
    bad = np.flatnonzero(np.isnan(values)).tolist()
    if bad:
        raise table.error(bad, f"cells of column '{column}' are no finite numbers", cells)
    return values.astype(np.float32)


def _numbers(table: Table, columns: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([read_numbers(table, name) for name in columns], axis=1)
