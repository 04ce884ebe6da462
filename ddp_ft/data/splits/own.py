"""The splits of a data set of the user's own, FILE.py:NAME: those that it has, or validation drawn from training."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.config.paths import code_file
from ddp_ft.contracts import LABEL, BadSample, LabelledSource, Schema
from ddp_ft.data.roles import ALL, ROLE_NAMES, TEST, TRAIN, VAL
from ddp_ft.data.sources.own import EXPECTED, OwnSource, whole_source
from ddp_ft.data.sources.own_targets import read_targets
from ddp_ft.data.splits.record import SplitRequest, Splits, divide_pool
from ddp_ft.data.splits.stratify import Pool
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened
from ddp_ft.plugins import digest_of

# Keys that only a table can follow.
_TABLE_KEYS = ("image", "target", "group", "weight", "split", "separator", "unknown")


def takes(path: Path) -> bool:
    """Whether it is FILE.py:NAME."""
    return code_file(path) is not None


def target_kind(kinds: Sequence[str]) -> str:
    """The task's own."""
    return kinds[0]


def config_for(config: DataConfig, path: Path, schema: Schema) -> DataConfig:
    """The same: nothing of it matters but the path."""
    return config


def open_part(config: DataConfig, path: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
    """The samples of that role; those of all roles for "all"."""
    wanted = ROLE_NAMES if split in (None, ALL) else (str(split),)
    found = read_targets(str(path), wanted)
    there = list(found.values)
    name = split or (VAL if VAL in there else ALL)
    roles = there if name == ALL else [role for role in there if role == name]
    if not roles:
        raise UserError(f"--data {path} has no samples for '{name}': it returned None.", "--split all takes all.")
    targets = {role: found.numbered(role, schema.kind, schema.names) for role in roles}
    return name, whole_source(str(path), targets, roles)


def open_splits(request: SplitRequest, path: Path, task: str) -> Splits:
    """As `Layout`. Raises UserError, too, for code that fails, for a first sample that is no image, and for a key that
    only a table can follow."""
    _check_keys(request.config, path)
    found = read_targets(str(path), ROLE_NAMES)
    if TRAIN not in found.values:
        raise UserError(f"--data {path}('{TRAIN}') returned None: there is nothing to train on.", EXPECTED)
    kind = found.kind(task)
    names = found.names(kind)
    targets = {role: found.numbered(role, kind, names) for role in found.values}
    sources = {role: whole_source(str(path), targets, [role]) for role in targets}
    notes = [*found.notes(kind, task), *_check_classes(path, kind, names, targets[TRAIN])]
    for source in sources.values():
        _check_first(source)
    seen = fingerprint(str(path), kind, names, targets)
    train = sources[TRAIN]
    pool = Pool([train.name(index) for index in range(len(train))], kind, train.targets)
    division = divide_pool(request, pool, path, VAL in sources, seen)
    if not division.record["given"]:
        sources |= {TRAIN: train.where(division.train), VAL: train.where(division.val)}
    KINDS[kind].check_training(sources[TRAIN].targets, names, path)
    division.record["counts"] = {role: len(source) for role, source in sources.items()}
    notes += division.notes(pool, names)
    schema = Schema(kind, names)
    return Splits(sources[TRAIN], sources[VAL], sources.get(TEST), schema, seen, division.record, tuple(notes))


def fingerprint(reference: str, kind: str, names: Sequence[str], targets: Mapping[str, NDArray[Any]]) -> str:
    """A hash of the file's bytes and of all targets; the images are not read for it."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join([str(digest_of(reference)), reference.rpartition(":")[2], kind, *names]).encode())
    for role, values in targets.items():
        digest.update(f"\0{role} {len(values)}\0".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _check_classes(path: Path, kind: str, names: tuple[str, ...], targets: NDArray[Any]) -> list[str]:
    if kind == LABEL and len(names) > 1 and (lost := KINDS[kind].absent(targets, names)):
        hint = "Leave them out of its attribute `classes`, or add samples."
        raise UserError(f"--data {path}: no sample for training is of these classes: {shortened(lost)}.", hint)
    return KINDS[kind].check_candidates(targets, names, path)


def _check_first(source: OwnSource) -> None:
    """Raise UserError if the first sample is no image and target. One that fails is met later, as a damaged image."""
    with suppress(BadSample):
        source.read(0)


def _check_keys(config: DataConfig, path: Path) -> None:
    plain = DataConfig()
    if given := [f"data.{name}" for name in _TABLE_KEYS if getattr(config, name) != getattr(plain, name)]:
        raise UserError(f"{', '.join(given)}: this is for tables, and {path} is code.", "Leave it out.")
