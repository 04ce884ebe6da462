"""What the rows of a table are of: files that they name, or texts that they hold."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LabelledSource
from ddp_ft.data.cells import OF_LIST, Table, list_of_cell
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.table_columns import Columns
from ddp_ft.data.sources.unicode_forms import NamesOnDisk
from ddp_ft.data.text.source import LabelledTexts, LabelledWords, Texts, name_of

_LISTED_FILES = 20


@dataclass(frozen=True)
class Contents:
    """`names` identify what rows are of: the paths of images, relative to `root` or absolute; of `texts` a hash and
    their beginning; and where `are_words`, lists of them in `texts`, the place in the table. `sizes` are in bytes
    (int64)."""

    root: Path
    names: list[str]
    sizes: NDArray[np.int64]
    texts: list[Texts] | None = None
    are_words: bool = False

    @property
    def noun(self) -> str:
        """What a row is of, in messages."""
        return "image" if self.texts is None else "text"

    def chosen(self, rows: Sequence[int]) -> "Contents":
        """Those of these rows, in that order."""
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        return replace(self, names=[self.names[row] for row in rows], sizes=self.sizes[list(rows)], texts=texts)

    def source(self, targets: NDArray[Any], weights: NDArray[np.float32] | None) -> LabelledSource:
        """All rows as a source."""
        if self.texts is not None:
            kind = LabelledWords if self.are_words else LabelledTexts
            return kind(self.names, self.texts, targets, weights)
        return LabelledFileSource(self.root, self.names, targets, weights)


def read_contents(table: Table, columns: Columns) -> Contents:
    """The contents of all rows. UserError for images that are not there."""
    if columns.texts:
        columns_of = ([cell.replace(OF_LIST, " ") for cell in table.columns[name]] for name in columns.texts)
        texts = list(zip(*columns_of, strict=True))
        sizes = np.array([sum(map(len, each)) for each in texts], np.int64)
        return Contents(table.path.parent, [name_of(each) for each in texts], sizes, texts)
    if columns.words:
        return _words(table, columns)
    paths = _paths(table, columns.image)
    return Contents(table.path.parent, paths, _sizes(table, paths))


def _words(table: Table, columns: Columns) -> Contents:
    """UserError for words without tags, or tags without words."""
    cells, tags = table.columns[columns.words], table.columns[columns.targets[0]]
    counts = [[len(list_of_cell(each)) for each in pair] for pair in zip(cells, tags, strict=True)]
    if uneven := [row for row, (words, count) in enumerate(counts) if words != count]:
        shown = ["{} words, {} tags".format(*each) for each in counts]
        raise table.error(uneven, "rows have another number of tags than of words", shown)
    parts = table.columns[columns.split] if columns.split else ["line"] * len(table)
    names = [f"{part}:{number:07d}" for part, number in zip(parts, table.numbers, strict=True)]
    sizes = np.array([len(cell) for cell in cells], np.int64)
    return Contents(table.path.parent, names, sizes, [(cell,) for cell in cells], are_words=True)


def _paths(table: Table, column: str) -> list[str]:
    cells = table.filled(column, "Every row needs an image's path.")
    root = f"{table.path.parent.absolute()}/"
    here = NamesOnDisk(root)
    # One way to write each path: without detours, and relative to the table if it is below.
    return [here.find(os.path.normpath(_of_this_system(cell, root)).removeprefix(root)) for cell in cells]


def _of_this_system(cell: str, root: str) -> str:
    """With / for the backslashes of a table that was written on Windows, if that is what is there."""
    if "\\" not in cell or _size(root, cell) >= 0:
        return cell
    other = cell.replace("\\", "/")
    return other if _size(root, other) >= 0 else cell


def _sizes(table: Table, paths: Sequence[str]) -> NDArray[np.int64]:
    root = str(table.path.parent)
    sizes = np.array([_size(root, path) for path in paths], np.int64)
    if missing := np.flatnonzero(sizes < 0).tolist():
        hint = f"Paths are relative to {root}, or absolute."
        raise table.error(missing, f"of {len(paths)} images are not there", paths, hint, _LISTED_FILES)
    return sizes


def _size(root: str, path: str) -> int:
    """In bytes; -1 for what is no file."""
    try:
        status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118  (a Path for each takes longer)
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
