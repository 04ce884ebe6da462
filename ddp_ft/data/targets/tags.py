"""A tag for each word of a sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import WORD_TAGS
from ddp_ft.data.cells import list_of_cell
from ddp_ft.data.tag_names import OUTSIDE, TAG, type_of
from ddp_ft.data.targets.base import TargetColumns, TargetKind
from ddp_ft.errors import UserError, shortened


class Tags(TargetKind):
    """Targets are an array of objects (N), each int64 (the sample's words): numbers of tags, whose names are O, or a
    place and a type of entity: B-TYPE, I-TYPE, E-TYPE, S-TYPE."""

    name, called, can_be_mixed = WORD_TAGS, "tags", False

    def strata(self, targets: NDArray[Any], bins: int) -> NDArray[np.bool_]:
        """The tags that a sample has."""
        found = np.zeros((len(targets), 1 + max((int(each.max(initial=0)) for each in targets), default=0)), np.bool_)
        for row, each in zip(found, targets, strict=True):
            row[each] = True
        return found

    def check_training(self, targets: NDArray[Any], names: Sequence[str], path: Path) -> None:
        """UserError if no word has another tag than O."""
        if len(names) < 2:
            raise UserError(f"{path} has one tag only, {names[0]}; expected O, B-TYPE and others.")

    def describe(self, names: Sequence[str]) -> str:
        """With the number of types."""
        types = {type_of(name) for name in names if name != OUTSIDE}
        return f"entities of {len(types)} types"

    def read(self, columns: TargetColumns) -> tuple[tuple[str, ...], NDArray[Any]]:
        """The tags: O, then those of each type."""
        found = {tag for cell in columns.first for tag in list_of_cell(cell)}
        if bad := sorted(tag for tag in found if not TAG.fullmatch(tag)):
            hint = "Expected O for words outside, and B-TYPE, I-TYPE (or E-TYPE and S-TYPE) within entities."
            raise UserError(f"Column '{columns.names[0]}' of {columns.table.path} has tags {shortened(bad)}.", hint)
        names = tuple(sorted(found | {OUTSIDE}, key=lambda tag: (tag != OUTSIDE, type_of(tag), tag)))
        return names, self.read_known(columns, names)

    def read_known(self, columns: TargetColumns, names: tuple[str, ...]) -> NDArray[Any]:
        """The numbers of the tags. UserError for others."""
        numbers = {name: number for number, name in enumerate(names)}
        tags = [list_of_cell(cell) for cell in columns.first]
        if unknown := sorted({tag for each in tags for tag in each} - set(names)):
            self._refuse(columns, unknown, names)
        found = np.empty(len(tags), object)
        for place, each in enumerate(tags):
            found[place] = np.array([numbers[tag] for tag in each], np.int64)
        return found
