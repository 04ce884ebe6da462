"""The splits of a run, and the record of which samples were drawn for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddp_ft.config import DataConfig
from ddp_ft.contracts import LABEL, NUMBERS, LabelledSource, Schema
from ddp_ft.data.divide import Pool, deal, draw, parse_fold
from ddp_ft.data.folder import shortened
from ddp_ft.errors import UserError

if TYPE_CHECKING:
    from ddp_ft.data.quarantine import Quarantine

TRAIN, VAL, TEST = "train", "val", "test"
VAL_NAMES = ("val", "valid", "validation")
ROLES = {TRAIN: TRAIN, TEST: TEST} | dict.fromkeys(VAL_NAMES, VAL)
# From here on, a drawn part whose size is that far from --val-split is told of, in shares of all samples.
_FAR_FROM_SHARE = 0.05


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    `fingerprint` hashes paths, sizes and targets of all pictures, whichever split they are in. `record` is what
    split.json stores, and what `open_splits` takes back. `notes` are lines to print. `quarantine` takes the record of
    damaged pictures that the run goes on without; None: it ends at the first.
    """

    train: LabelledSource
    val: LabelledSource
    test: LabelledSource | None
    schema: Schema
    fingerprint: str
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    quarantine: "Quarantine | None" = None


def make_record(config: DataConfig, seed: int, pool: Pool, where: Path | None, given: bool) -> dict[str, Any]:
    """split.json for new data: {"given": true} where it says itself what validates, else the names on each side.

    Raises UserError where nothing can be held back, and for a `data.fold` beside a given validation part.
    """
    if given:
        if config.fold is not None:
            hint = "Leave data.fold out, or take the validation part away."
            raise UserError(f"data.fold = '{config.fold}', but {where} says itself what validates.", hint)
        return {"given": True}
    if config.fold is not None:
        fold, folds = parse_fold(config.fold)
        held_back = deal(pool, folds, seed) == fold - 1
        how: dict[str, Any] = {"fold": config.fold}
    else:
        held_back = draw(pool, config.val_split, seed)
        how = {"val_split": config.val_split}
    if not held_back.any():
        raise _cannot_divide(pool, where)
    names: list[list[str]] = [[], []]
    for name, side in zip(pool.names, held_back.tolist(), strict=True):
        names[side].append(name)
    train, val = (list(dict.fromkeys(side)) for side in names)
    return {"given": False, "seed": seed, **how, TRAIN: train, VAL: val}


def _cannot_divide(pool: Pool, where: Path | None) -> UserError:
    if pool.groups is None:
        hint = "Add pictures, or a val/ folder beside train/ (in a table: a column for data.split)."
        return UserError(f"{where} has too few pictures to hold some back for validation.", hint)
    hint = "Add groups, or say in a column for data.split what validates."
    groups = shortened(sorted(set(pool.groups)), 5)
    return UserError(f"No group of {where} can be held back for validation without losing a class: {groups}.", hint)


def check_stored(where: Path | None, stored: Mapping[str, Any], names: Sequence[str], given: bool) -> None:
    """UserError unless the data still divides as the stored record says, and has all its pictures."""
    if stored["given"] != given:
        was, now = ("with", "without") if stored["given"] else ("without", "with")
        raise UserError(f"The run began {was} a validation folder or rows in {where}, which is now {now}.")
    if given:
        return
    here = set(names)
    gone = [name for name in (*stored[TRAIN], *stored[VAL]) if name not in here]
    if gone:
        hint = "Put them back, or start a new run in another --run-dir."
        raise UserError(f"{len(gone)} pictures of this run are gone from {where}: {shortened(gone)}.", hint)


def side_of(names: Sequence[str], record: Mapping[str, Any], role: str) -> list[int]:
    """The samples that a record of drawn parts has on that side."""
    chosen = set(record[role])
    return [index for index, name in enumerate(names) if name in chosen]


def record_notes(pool: Pool, record: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """What the user should know of drawn parts: new pictures, classes on one side alone, a share that is far off."""
    if record["given"]:
        return []
    train, val = (side_of(pool.names, record, role) for role in (TRAIN, VAL))
    new = len(pool) - len(train) - len(val)
    notes = [f"{new} pictures are new since the run began and are left out."] if new else []
    if pool.kind != NUMBERS and (lost := _absent(pool, train, classes)):
        notes.append(f"Classes without a picture for training: {shortened(lost)}.")
    asked, share = record.get("val_split"), len(val) / max(len(train) + len(val), 1)
    if pool.groups is not None and asked is not None and abs(share - asked) > _FAR_FROM_SHARE:
        notes.append(f"Whole groups make {share:.0%} of the pictures validate, where {asked:.0%} were asked for.")
    return notes


def _absent(pool: Pool, rows: Sequence[int], classes: Sequence[str]) -> list[str]:
    targets: Any = pool.targets[rows]
    counts = np.bincount(targets, minlength=len(classes)) if pool.kind == LABEL else targets.sum(0)
    return [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
