"""The splits of a run, and the record of the samples drawn for validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.config.forms import parse_fold
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.roles import TRAIN, VAL
from ddp_ft.data.splits.inventory import describe_changes, make_inventory
from ddp_ft.data.splits.stratify import Pool, deal, draw
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened
from ddp_ft.texts import plural

if TYPE_CHECKING:
    from ddp_ft.data.bad_samples.quarantine import Quarantine

# The least difference between a drawn share and --val-split that has a note, in shares of all samples.
_FAR_FROM_SHARE = 0.05


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    `fingerprint` hashes paths, sizes and targets of all images, whichever split they are in. `record` is what
    split.json stores and `open_splits` takes back; it is not sent to other ranks, since it names every image and only
    rank 0 writes it. `notes` are lines to print. `quarantine` records the damaged images that the run continues
    without; None: the run ends at the first. `inventory` is what split.json stores to compare with later.
    """

    train: LabelledSource
    val: LabelledSource
    test: LabelledSource | None
    schema: Schema
    fingerprint: str
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    quarantine: "Quarantine | None" = None
    inventory: dict[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "record": {}, "inventory": None}

    def check_same(self, stored: Mapping[str, Any] | None, run_dir: Path) -> None:
        """UserError if `stored`, the run's split.json, is of other data: files, sizes or labels have changed since."""
        if stored is not None and stored["fingerprint"] != self.fingerprint:
            changes = describe_changes(stored.get("inventory"), self.inventory)
            found = changes or "files, their sizes, their labels or their code differ"
            raise UserError(
                f"{run_dir} holds a run on other data: {found}.",
                "Choose another folder with --run-dir, or bring back the data of that run.",
            )


@dataclass(frozen=True)
class Division:
    """How a pool is divided: the record for split.json, and two masks over the pool, all False if the data itself names
    what validates."""

    record: dict[str, Any]
    train: NDArray[np.bool_]
    val: NDArray[np.bool_]

    def notes(self, pool: Pool, classes: Sequence[str]) -> list[str]:
        """Notes on new images, classes without an image for training, and a share that is far off."""
        if self.record["given"]:
            return []
        train, val = np.count_nonzero(self.train), np.count_nonzero(self.val)
        new = len(pool) - train - val
        notes = [f"{plural(new, 'image is', 'images are')} new since the run began, and left out."] if new else []
        if lost := KINDS[pool.kind].absent(pool.targets[self.train], classes):
            notes.append(f"Classes without an image for training: {shortened(lost)}.")
        asked, share = self.record.get("val_split"), val / max(train + val, 1)
        if pool.groups is not None and asked is not None and abs(share - asked) > _FAR_FROM_SHARE:
            notes.append(f"Whole groups make {share:.0%} of the images validate; --val-split is {asked:.0%}.")
        return notes


@dataclass(frozen=True)
class SplitRequest:
    """What decides how data is divided: keys and a seed, or `stored`, split.json of a run that has one."""

    config: DataConfig
    seed: int
    stored: Mapping[str, Any] | None = None

    def is_new(self, fingerprint: str) -> bool:
        """Whether the data is not the very data of the stored record."""
        return self.stored is None or self.stored.get("fingerprint") != fingerprint

    def inventory(self, fingerprint: str, count: int, samples: Iterable[tuple[str, Any]]) -> dict[str, str] | None:
        """As `make_inventory`, if it will be needed: to store it, or to name what has changed."""
        return make_inventory(count, samples) if self.is_new(fingerprint) else None


def divide_pool(request: SplitRequest, pool: Pool, where: Path | None, given: bool, fingerprint: str) -> Division:
    """The pool as the stored record divides it, else as it is drawn now; `given`: the data itself names what validates.

    Raises UserError if nothing can be held back, for a `data.fold` beside a given validation part, and unless the data
    still divides as stored and has all its images.
    """
    stored = request.stored
    if stored is not None and stored["given"] != given:
        was, now = ("with", "without") if stored["given"] else ("without", "with")
        raise UserError(f"The run began {was} a validation folder or rows in {where}, which is now {now}.")
    record = dict(_make_record(request.config, request.seed, pool, where, given) if stored is None else stored)
    if given:
        none = np.zeros(len(pool), np.bool_)
        return Division(record, none, none)
    val = _are_in(pool.names, record[VAL])
    # The same data as before has no new images and has lost none: a million names need not be compared again.
    if stored is None or not request.is_new(fingerprint):
        return Division(record, ~val, val)
    here = set(pool.names)
    if gone := [name for name in (*record[TRAIN], *record[VAL]) if name not in here]:
        hint = "Put them back, or start a new run in another --run-dir."
        raise UserError(
            f"{plural(len(gone), 'image of this run is', 'images of this run are')} gone from {where}: "
            f"{shortened(gone)}.",
            hint,
        )
    return Division(record, _are_in(pool.names, record[TRAIN]), val)


def _are_in(names: Sequence[str], chosen: Sequence[str]) -> NDArray[np.bool_]:
    known = set(chosen)
    return np.fromiter(map(known.__contains__, names), np.bool_, len(names))


def _make_record(config: DataConfig, seed: int, pool: Pool, where: Path | None, given: bool) -> dict[str, Any]:
    """split.json for new data: {"given": true} if it names what validates, else the names on each side."""
    if given:
        if config.fold is not None:
            hint = "Leave data.fold out, or remove the validation part."
            raise UserError(f"data.fold = '{config.fold}', but {where} itself names what validates.", hint)
        return {"given": True}
    if config.fold is not None:
        if config.folds is not None and pool.folds is None:
            raise UserError(f"data.folds = '{config.folds}' is for a table's column, and {where} is no table.")
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
        hint = "Add images, or a val/ folder beside train/ (in a table: a column for data.split)."
        classes = KINDS[pool.kind].strata(pool.targets, 1)
        if classes.ndim == 1 and 1 < len(np.unique(classes)) == len(classes):
            hint += " For numbers: --task regression."
            return UserError(f"{where} has too few images to hold some back for validation: one of each class.", hint)
        return UserError(f"{where} has too few images to hold some back for validation.", hint)
    hint = "Add groups, or name what validates in a column for data.split."
    groups = shortened(sorted(set(pool.groups)), 5)
    return UserError(f"No group of {where} can be held back for validation without losing a class: {groups}.", hint)
