"""The targets of a table: which kind its columns are taken for, and the cells as targets of that kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ddp_ft.config.tasks import TASKS, fitting_tasks
from ddp_ft.contracts import Schema
from ddp_ft.data.targets.base import TargetColumns, TargetKind
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import shortened


@dataclass(frozen=True)
class Targets:
    """`values` are as in LabelledSource; `note` says what they were taken for, if that was guessed."""

    schema: Schema
    values: NDArray[Any]
    note: str = ""


def find_targets(columns: TargetColumns, task: str) -> Targets:
    """The targets in those columns, of the kind that `task` wants; for "auto" of the first kind that they look like.

    Raises UserError where that is no answer, and for cells that do not fit.
    """
    is_guessed = task not in TASKS
    kind = _guess(columns) if is_guessed else KINDS[TASKS[task].kinds[0]]
    names, values = kind.read(columns)
    return Targets(Schema(kind.name, names), values, _note(columns, kind, names) if is_guessed else "")


def _guess(columns: TargetColumns) -> TargetKind:
    return next(kind for kind in KINDS.values() if kind.looks_like(columns))


def _note(columns: TargetColumns, kind: TargetKind, names: Sequence[str]) -> str:
    what = f"{kind.describe(names)} ({fitting_tasks(kind.name)[0]})"
    return f"{_named(columns.names)} taken as {what}; --task can say otherwise."


def _named(columns: Sequence[str]) -> str:
    return f"Column '{columns[0]}' is" if len(columns) == 1 else f"Columns {shortened(columns)} are"
