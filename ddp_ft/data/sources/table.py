"""Images and targets from a table, checked: which columns mean what, and a source of its rows."""

import os
import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import Batch, Sample, Schema
from ddp_ft.data.cells import Table, read_numbers
from ddp_ft.data.image.decode import open_image
from ddp_ft.data.image.undecoded import decoded
from ddp_ft.data.roles import ROLES
from ddp_ft.data.sources.paths import Paths
from ddp_ft.data.sources.table_file import read_table
from ddp_ft.data.sources.table_targets import Targets, find_targets
from ddp_ft.data.targets.base import TargetColumns
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, nearest, shortened

_LISTED_FILES = 20
SPLIT_COLUMN = "split"


class TableSource:
    """Images of a table's rows. `paths` are relative to `root` or absolute; see LabelledSource for the rest."""

    kind = "image"

    def __init__(
        self, root: Path, paths: Sequence[str], targets: NDArray[Any], weights: NDArray[np.float32] | None = None
    ) -> None:
        assert len(paths) == len(targets) and (weights is None or len(weights) == len(paths))
        self.root = str(root)
        self.paths = Paths.of(paths)
        self.targets = targets
        self.weights = weights

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path, with the table's folder before a relative one."""
        return os.path.join(self.root, self.paths[index])  # noqa: PTH118  (as in inspect)

    def open(self, index: int) -> Sample:
        """The "image", not yet decoded, "target", and "weight" (float32, a scalar) where there are any. Raises
        BadSample."""
        sample = {"image": open_image(self.name(index)), "target": torch.tensor(self.targets[index])}
        return sample if self.weights is None else {**sample, "weight": torch.tensor(self.weights[index])}

    def read(self, index: int) -> Batch:
        """The same, decoded (uint8, 3 x H x W). Raises BadSample."""
        return decoded(self.open(index))


@dataclass
class Rows:
    """The rows of a table, sorted by path: what `config` names of them, and the images' sizes in bytes.

    `roles` has "train", "val" or "test" for each; None without a column that says it.
    """

    root: Path
    schema: Schema
    paths: list[str]
    sizes: "array[int]"
    targets: NDArray[Any]
    weights: NDArray[np.float32] | None
    groups: list[str] | None
    roles: list[str] | None
    notes: list[str] = field(default_factory=list)

    def source(self, chosen: Sequence[int]) -> TableSource:
        """These rows as a source."""
        weights = None if self.weights is None else self.weights[chosen]
        return TableSource(self.root, [self.paths[row] for row in chosen], self.targets[chosen], weights)


@dataclass(frozen=True)
class _Columns:
    image: str
    targets: tuple[str, ...]
    group: str | None
    weight: str | None
    split: str | None

    def all(self) -> list[str]:
        others = [name for name in (self.group, self.weight, self.split) if name is not None]
        return [self.image, *self.targets, *others]


def read_rows(config: DataConfig, path: Path, task: str = "auto", schema: Schema | None = None) -> Rows:
    """A table's rows; with a schema, that of a trained model, targets are numbered as there.

    Raises UserError for columns that are not there, cells that do not fit and images that do not exist.
    """
    asked: list[_Columns] = []

    def choose(header: list[str]) -> list[str]:
        # Another table than the one a model was trained on need not say what validates.
        optional = schema is not None and config.split not in header
        asked.append(_find_columns(replace(config, split=None) if optional else config, path, header))
        return asked[0].all()

    table = read_table(path, choose)
    columns = asked[0]
    paths = _paths(table, columns.image)
    sizes = _sizes(table, paths)
    given = TargetColumns(table, columns.targets, config.separator)
    if schema is None:
        found = find_targets(given, task)
    else:
        found = Targets(schema, KINDS[schema.kind].read_known(given, schema.names))
    weights = None if columns.weight is None else _weights(table, columns.weight)
    groups = None if columns.group is None else _groups(table, columns.group)
    roles = None if columns.split is None else _roles(table, columns.split)
    notes = [found.note] if found.note else []
    return _sorted(Rows(path.parent, found.schema, paths, sizes, found.values, weights, groups, roles, notes))


def _find_columns(config: DataConfig, path: Path, header: list[str]) -> _Columns:
    targets = [config.target]
    if config.target not in header:
        targets = [name for part in config.target.split(",") if (name := part.strip())]
    if len(set(targets)) < len(targets) or not targets:
        raise UserError(f"data.target = '{config.target}' is not one column, or several different ones.")
    split = config.split
    if split is None and SPLIT_COLUMN in header:
        split = SPLIT_COLUMN
    wanted = [("data.image", config.image), *(("data.target", name) for name in targets)]
    wanted += [
        (f"data.{key}", name) for key in ("group", "weight", "split") if (name := getattr(config, key)) is not None
    ]
    missing = [(key, name) for key, name in wanted if name not in header]
    if missing:
        listed = ", ".join(f"'{name}' ({key})" for key, name in missing)
        guesses = [guess for _, name in missing if (guess := nearest(name, header, limit=1))]
        columns = f"Its columns: {shortened([repr(name) for name in header], 20)}."
        hint = "\n".join([*guesses, columns, f"Say which it is: --set {missing[0][0]}=COLUMN."])
        raise UserError(f"{path} has no column {listed}.", hint)
    return _Columns(config.image, tuple(targets), config.group, config.weight, split)


def _paths(table: Table, column: str) -> list[str]:
    cells = table.columns[column]
    if empty := [row for row, cell in enumerate(cells) if not cell]:
        raise table.error(empty, f"cells of column '{column}' are empty", cells, "Every row needs an image's path.")
    root = f"{table.path.parent.absolute()}/"
    return [_normal(_of_this_system(cell, root), root) for cell in cells]


def _of_this_system(cell: str, root: str) -> str:
    """With / for the backslashes of a table that was written on Windows, if that is what is there."""
    if "\\" not in cell or _size(os.path.join(root, cell)) >= 0:  # noqa: PTH118
        return cell
    other = cell.replace("\\", "/")
    return other if _size(os.path.join(root, other)) >= 0 else cell  # noqa: PTH118


def _normal(cell: str, root: str) -> str:
    """One way to write each path: without detours, and relative to the table where it lies below."""
    return os.path.normpath(cell).removeprefix(root)


def _sizes(table: Table, paths: Sequence[str]) -> "array[int]":
    root = str(table.path.parent)
    sizes = array("q", (_size(os.path.join(root, path)) for path in paths))  # noqa: PTH118
    if missing := [row for row, size in enumerate(sizes) if size < 0]:
        hint = f"Paths are relative to {root}, or absolute."
        raise table.error(missing, f"of {len(paths)} images are not there", paths, hint, _LISTED_FILES)
    return sizes


def _size(file: str) -> int:
    """In bytes; -1 for what is no file."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _weights(table: Table, column: str) -> NDArray[np.float32]:
    weights = read_numbers(table, column)
    if negative := np.flatnonzero(weights < 0).tolist():
        hint = "A weight says how much an image counts: 0 or more."
        raise table.error(negative, f"cells of column '{column}' are negative", table.columns[column], hint)
    return weights


def _groups(table: Table, column: str) -> list[str]:
    cells = table.columns[column]
    if empty := [row for row, cell in enumerate(cells) if not cell]:
        hint = "Give each image a group; one that is alone may have its own."
        raise table.error(empty, f"cells of column '{column}' are empty", cells, hint)
    return cells


def _roles(table: Table, column: str) -> list[str]:
    cells = table.columns[column]
    roles = [ROLES.get(cell.lower(), "") for cell in cells]
    if unknown := [row for row, role in enumerate(roles) if not role]:
        hint = (
            f"Known: {', '.join(ROLES)}. If the column means something else, name another by data.split or rename it."
        )
        raise table.error(unknown, f"cells of column '{column}' name no split", cells, hint)
    return roles


def _sorted(rows: Rows) -> Rows:
    """In an order that does not depend on the table's, but for rows that are equal in path and target."""
    order = sorted(range(len(rows.paths)), key=rows.paths.__getitem__)
    if len(set(rows.paths)) < len(rows.paths):
        order.sort(key=lambda row: (rows.paths[row], rows.targets[row].tobytes()))

    def take(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in order]

    return Rows(
        rows.root,
        rows.schema,
        [rows.paths[row] for row in order],
        array("q", (rows.sizes[row] for row in order)),
        rows.targets[order],
        None if rows.weights is None else rows.weights[order],
        take(rows.groups),
        take(rows.roles),
        rows.notes,
    )
