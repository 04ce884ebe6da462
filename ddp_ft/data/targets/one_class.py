"""One class for each sample."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LABEL
from ddp_ft.data.numerals import appearance
from ddp_ft.data.targets.base import TargetColumns, TargetKind
from ddp_ft.errors import UserError, shortened

# Whole numbers are taken as classes if they are at most so many, each in two rows or more on average.
_MOST_NUMBERED_CLASSES = 20
# What may be between several labels, and names of classes that may mean that there is none.
_SEPARATORS = (";", ",", "|", "/", "+", "&", ":", "\t", "\n", " ")
_CLEAR = ";,|"
_NO_CLASSES = frozenset(("unknown", "missing", "undefined", "unlabeled", "unlabelled", "unlabel", "tbd", "ignore"))
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")


class OneClass(TargetKind):
    """Targets are int64 (N,), class numbers. A column that looks like no other kind is of this one."""

    name, called, keeps_strata = LABEL, "classes", True

    def strata(self, targets: NDArray[Any], bins: int) -> NDArray[np.int64]:
        """The classes."""
        return targets.astype(np.int64)

    def counts(self, targets: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
        """Of each class."""
        return np.bincount(targets, minlength=len(names))

    def balanced(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """1 / (number of samples of the class)."""
        _, classes, counts = np.unique(targets, return_inverse=True, return_counts=True)
        return np.asarray(1 / counts[classes])

    def check_candidates(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> list[str]:
        """No notes. UserError for a single class, and for one that training lacks."""
        if len(names) < 2:
            raise UserError(f"{path} has one class only, {names[0]}; expected two or more.")
        if unknown := self.absent(targets, names):
            raise UserError(f"{path} has classes that only its val or test rows have: {shortened(unknown)}.")
        return []

    def describe(self, names: Sequence[str]) -> str:
        """With the number of classes."""
        return f"one of {len(names)} classes each"

    def looks_like(self, columns: TargetColumns) -> bool:
        """Always; UserError for too many different numbers, or texts that look like numbers, to be classes."""
        cells = columns.known()
        distinct = len(set(map(_plain, cells)))
        what = _quantities(cells) if distinct > _MOST_NUMBERED_CLASSES or 2 * distinct > len(cells) else ""
        if what:
            where = f"Column '{columns.names[0]}' of {columns.table.path}"
            message = (
                f"{where} has {distinct} different {what} in {len(cells)} rows: they may be classes or quantities."
            )
            raise UserError(message, "Choose: --task single-label or --task regression.")
        return True

    def doubt(self, columns: TargetColumns) -> str:
        """That they look like quantities, or that -1 may mean unknown."""
        cells = set(columns.known())
        if not all(map(_WHOLE.fullmatch, cells)):
            look = appearance(sorted(cells))
            return f"They look like {look}." if look else ""
        negative = {cell for cell in cells if cell.startswith("-")}
        is_odd = negative and negative <= {"-1", "-1.0"} and len(cells) > 2
        return "-1 is one of the classes: remove its rows if it means unknown." if is_odd else ""

    def notes(self, columns: TargetColumns) -> list[str]:
        """On classes that may be several labels, no label, or one class in two spellings."""
        classes = sorted(set(columns.known()))
        found = []
        if joined := _joined(classes):
            found.append(
                f"Classes such as {joined[0]!r} look like several labels. If they are: --task multi-label "
                f"--set data.separator={shlex.quote(joined[1])}"
            )
        if lists := [name for name in classes if name[0] + name[-1] in ("[]", "{}", "()")]:
            found.append(f"Classes such as {lists[0]!r} look like lists of labels: write them as 'a;b'.")
        if odd := [name for name in classes if name.lower() in _NO_CLASSES or _is_odd_number(name, classes)]:
            found.append(f"{shortened(odd)} among the classes: if it means that none is known, remove its rows.")
        spellings = Counter(name.casefold() for name in classes)
        if alike := [name for name in classes if spellings[name.casefold()] > 1]:
            found.append(f"Classes that differ only in upper and lower case: {shortened(alike)}.")
        return found

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The classes in order; whole numbers are the same class with a decimal point and without."""
        cells = _cells(columns)
        # Parquet and spreadsheets write the same whole number as 3 or 3.0.
        names = tuple(sorted(set(map(_plain, cells) if all(map(_WHOLE.fullmatch, cells)) else cells)))
        return names, self.read_known(columns, names)

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[np.int64]:
        """int64 (N,)."""
        numbers = {name: number for number, name in enumerate(names)}
        cells = [cell if cell in numbers else _plain(cell) for cell in _cells(columns)]
        if unknown := sorted(set(cells) - set(names)):
            self._refuse(columns, unknown, names)
        return np.array([numbers[cell] for cell in cells], np.int64)


def _joined(classes: Sequence[str]) -> tuple[str, str] | None:
    """A class that consists of others, and what is between these; None if there is none.

    Between clear separators a part may also be one that several classes have: `cat|big` beside `dog|big`.
    """
    for separator in _SEPARATORS:
        split = {name: {part.strip() for part in name.split(separator)} for name in classes}
        uses = Counter(part for parts in split.values() for part in parts)
        known = {*classes, *(part for part, count in uses.items() if count > 1 and separator in _CLEAR)}
        for name, parts in split.items():
            if separator in name and known.issuperset(parts) and not parts.isdisjoint(classes):
                return name, separator
    return None


def _is_odd_number(name: str, classes: Sequence[str]) -> bool:
    """Whether it is the only number among words."""
    return len(classes) > 2 and bool(_WHOLE.fullmatch(name)) and sum(map(bool, map(_WHOLE.fullmatch, classes))) == 1


def _cells(columns: TargetColumns) -> list[str]:
    if len(columns.names) > 1:
        hint = "Name one column, or give --task multi-label or --task regression."
        raise UserError(f"data.target names {len(columns.names)} columns; one label for each image is in one.", hint)
    return columns.table.filled(columns.names[0])


def _quantities(cells: Sequence[str]) -> str:
    """What the cells are if they are no words."""
    if all(map(_WHOLE.fullmatch, cells)):
        return "whole numbers"
    look = appearance(cells)
    return f"texts such as {cells[0]!r}, which look like {look}," if look else ""


def _plain(cell: str) -> str:
    return cell.partition(".")[0] if _WHOLE.fullmatch(cell) else cell
