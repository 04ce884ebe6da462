"""The rows of a table, checked: columns of paths or texts, targets, weights, groups and splits as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.config.tasks import TASKS, fitting_tasks
from ddp_ft.contracts import LABEL, NUMBERS, WORD_TAGS, LabelledSource, Schema
from ddp_ft.data.cells import Table, is_missing, read_numbers
from ddp_ft.data.roles import ROLE_NAMES, role_of
from ddp_ft.data.sources.table_columns import Columns, choose_columns
from ddp_ft.data.sources.table_contents import Contents, read_contents
from ddp_ft.data.sources.table_file import read_table
from ddp_ft.data.targets.base import CLASS, DROP, FAIL, MASK, TargetColumns, TargetKind
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened


@dataclass
class Rows:
    """The rows of a table, sorted by the names of what they are of.

    `targets` and `weights` are as in LabelledSource. `roles` has "train", "val" or "test" for each row; None without a
    column of splits. `folds` has the fold of each, None without a column of them. `notes` are lines to print.
    """

    contents: Contents
    schema: Schema
    targets: NDArray[Any]
    weights: NDArray[np.float32] | None
    groups: list[str] | None
    roles: list[str] | None
    notes: list[str]
    folds: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """The names of what the rows are of."""
        return self.contents.names

    def source(self, chosen: Sequence[int]) -> LabelledSource:
        """These rows as a source."""
        weights = None if self.weights is None else self.weights[chosen]
        return self.contents.chosen(chosen).source(self.targets[chosen], weights)


def read_rows(config: DataConfig, path: Path, task: str = "auto", schema: Schema | None = None) -> Rows:
    """A table's rows; with the schema of a trained model, targets are numbered as in it.

    Raises UserError for columns that are not there, cells that do not fit and images that do not exist.
    """
    columns: Columns

    def choose(header: list[str]) -> list[str]:
        nonlocal columns
        columns = choose_columns(config, path, header, for_model=schema is not None)
        return columns.names

    table = read_table(path, choose)
    given = TargetColumns(table, columns.targets, config.separator, _unknown(config, schema))
    kind = KINDS[schema.kind] if schema is not None else _kind_for(given, task, bool(columns.words))
    if bool(columns.words) != (kind.name == WORD_TAGS):
        raise _of_no_words(path, kind, columns)
    given, notes = _with_known_targets(kind, given, is_settled=schema is not None)
    table = given.table
    contents = read_contents(table, columns)
    if schema is not None:
        values = kind.read_known(given, schema.names)
    else:
        names, values = kind.read(given)
        schema = Schema(kind.name, names)
        notes += [*kind.notes(given), *_guess(given, schema, task)]
    weights = None if columns.weight is None else _weights(table, columns.weight)
    groups = None if columns.group is None else _groups(given, columns.group)
    roles = None if columns.split is None else _roles(table, columns.split)
    folds = None if columns.folds is None else table.filled(columns.folds, "Give each row a fold.")
    return _sorted(Rows(contents, schema, values, weights, groups, roles, notes, folds))


def _kind_for(columns: TargetColumns, task: str, of_words: bool) -> TargetKind:
    """The kind that `task` learns; for "auto" that of words, or the first that the columns look like. UserError if none
    can be chosen."""
    if task in TASKS:
        return KINDS[TASKS[task].kinds[0]]
    if of_words:
        return KINDS[WORD_TAGS]
    separator, name = columns.separator, columns.names[0]
    is_alone = len(columns.names) == 1  # several hold no lists of labels
    if is_alone and separator != DataConfig().separator and not any(separator in cell for cell in columns.first):
        hint = f"Cells are such as {columns.first[0]!r}. If each has one label: --task single-label, or multi-label."
        raise UserError(
            f"data.separator = {separator!r} is in no cell of column '{name}' of {columns.table.path}.", hint
        )
    return next(kind for kind in KINDS.values() if kind.name != WORD_TAGS and kind.looks_like(columns))


def _of_no_words(path: Path, kind: TargetKind, columns: Columns) -> UserError:
    """The error for words without tags, and for tags without words."""
    if columns.words:
        return UserError(f"{path} has lists of words in '{columns.words}', which are for --task token-labels.")
    return UserError(
        f"{path} has no column of words.", f"Name it: --set data.words=COLUMN. Its {kind.called} are of words."
    )


def _guess(columns: TargetColumns, schema: Schema, task: str) -> list[str]:
    """A note on what the columns were taken for, if no task is given."""
    if task in TASKS or schema.kind == WORD_TAGS:
        return []
    which = f"Column '{columns.names[0]}' is" if len(columns.names) == 1 else f"Columns {shortened(columns.names)} are"
    kind = KINDS[schema.kind]
    what = f"{kind.describe(schema.names)} ({fitting_tasks(schema.kind)[0]})"
    return [f"{which} taken as {what}; --task can change that. {kind.doubt(columns)}".rstrip()]


def _with_known_targets(kind: TargetKind, columns: TargetColumns, is_settled: bool) -> tuple[TargetColumns, list[str]]:
    """The columns as data.unknown leaves them, and a note if a target is unknown. UserError if none must be; its hint
    names other kinds of targets, unless the kind `is_settled` by a trained model."""
    unknown = kind.unknown_cells(columns)
    if not unknown:
        return columns, []
    table, count = columns.table, f"{len(unknown)} of {len(columns.table)} rows"
    shown, remedies = _shown(unknown, table), _remedies(kind, unknown, is_settled)
    problem = "rows have no target" if len(unknown) > 1 else "row has no target"
    if len(unknown) == len(table) and columns.unknown != MASK:
        raise table.error(list(unknown), problem, shown, remedies)
    if columns.unknown == DROP:
        rest = replace(columns, table=table.without(list(unknown)))
        return rest, [f"{count} have no target in {shortened(columns.names)}; they are left out (data.unknown = drop)."]
    if columns.unknown == MASK and kind.can_be_masked:
        return columns, [f"{count} have unknown labels, which count neither in the loss nor in metrics."]
    if columns.unknown == MASK:
        problem += ", and data.unknown = mask is for several labels each"
    raise table.error(list(unknown), problem, shown, remedies)


def _unknown(config: DataConfig, schema: Schema | None) -> str:
    """data.unknown; a model with a class that is called so has settled what the word means, unless it is given."""
    has_such_class = schema is not None and any(map(is_missing, schema.names))
    return CLASS if has_such_class and config.unknown == FAIL else config.unknown


def _shown(unknown: Mapping[int, str], table: Table) -> list[str]:
    return [unknown.get(row, "") for row in range(len(table))]


def _remedies(kind: TargetKind, unknown: Mapping[int, str], is_settled: bool) -> str:
    hints = ["Fill them in, or leave these rows out: --set data.unknown=drop."]
    if kind.can_be_masked:
        hints.append("To learn from their other labels: --set data.unknown=mask.")
    if kind.name == LABEL and not is_settled and not all(unknown.values()):
        hints.append("If an empty cell means that no label is there: --task multi-label.")
    if kind.name != NUMBERS and (words := sorted({cell for cell in unknown.values() if cell and cell != "-1"})):
        hints.append(f"If there is a class called {shortened(words)}: --set data.unknown=class.")
    return "\n".join(hints)


def _groups(columns: TargetColumns, name: str) -> list[str]:
    """The cells of the column of groups. UserError if some are missing, since all of these would be one group."""
    cells = columns.table.columns[name]
    if missing := [row for row, cell in enumerate(cells) if columns.is_missing(cell)]:
        hint = "Give each row a group; one that is alone may have its own."
        raise columns.table.error(missing, f"cells of column '{name}' are empty", cells, hint)
    return cells


def _weights(table: Table, column: str) -> NDArray[np.float32]:
    weights, hint = read_numbers(table, column), "A weight is 0 or more."
    if negative := np.flatnonzero(weights < 0).tolist():
        raise table.error(negative, f"cells of column '{column}' are negative", table.columns[column], hint)
    if missing := np.flatnonzero(np.isnan(weights)).tolist():
        raise table.error(missing, f"cells of column '{column}' are no finite numbers", table.columns[column], hint)
    return weights


def _roles(table: Table, column: str) -> list[str]:
    cells = table.columns[column]
    roles = [role_of(cell) for cell in cells]
    if unknown := [row for row, role in enumerate(roles) if not role]:
        hint = f"Known: {', '.join(ROLE_NAMES)}. If the column means something else, rename it or set data.split."
        hint += f"\nIf it has folds: --set data.split=auto --set data.folds={column} --set data.fold=1/5."
        raise table.error(unknown, f"cells of column '{column}' name no split", cells, hint)
    return roles


def _sorted(rows: Rows) -> Rows:
    """In an order that does not depend on the table's, but for rows that are equal in name and target."""
    order = sorted(range(len(rows.names)), key=rows.names.__getitem__)
    if len(set(rows.names)) < len(rows.names):
        order.sort(key=lambda row: (rows.names[row], rows.targets[row].tobytes()))

    def take(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in order]

    return replace(
        rows,
        contents=rows.contents.chosen(order),
        targets=rows.targets[order],
        weights=None if rows.weights is None else rows.weights[order],
        groups=take(rows.groups),
        roles=take(rows.roles),
        folds=take(rows.folds),
    )
