"""The splits of a table: by its column of splits, or drawn, by whole groups where there are any."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.roles import ALL, TEST, TRAIN, VAL
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.table import Rows, read_rows
from ddp_ft.data.sources.table_file import is_table
from ddp_ft.data.splits.record import SplitRequest, Splits, divide_pool
from ddp_ft.data.splits.stratify import Pool
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened


def takes(path: Path) -> bool:
    """Whether the name is that of a table."""
    return is_table(path)


def target_kind(kinds: Sequence[str]) -> str:
    """The task's own."""
    return kinds[0]


def config_for(config: DataConfig, path: Path, schema: Schema) -> DataConfig:
    """As it is: the columns are those that the model was trained on."""
    return config


def open_part(config: DataConfig, path: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
    """The rows that the column of splits gives that part; all of them for "all"."""
    rows = read_rows(replace(config, group=None, weight=None), path, schema=schema)
    roles = rows.roles or []
    name = split or (VAL if VAL in roles else ALL)
    chosen = range(len(rows.paths)) if name == ALL else [row for row, role in enumerate(roles) if role == name]
    if not chosen:
        known = sorted(set(roles))
        hint = (
            f"Its column of splits has {' and '.join(known)}." if known else "It has no column of splits (data.split)."
        )
        raise UserError(f"{path} has no {name} rows.", f"{hint} --split all takes all rows.")
    return name, rows.source(list(chosen))


def open_splits(request: SplitRequest, path: Path, task: str) -> Splits:
    """As its layout.

    Raises UserError as `read_rows` does, and for an image or group on two sides of the given splits, classes
    that training lacks, targets that are all the same, and weights that leave nothing to train on.
    """
    rows = read_rows(request.config, path, task)
    parts = _given_parts(rows, path)
    groups = _groups_of_images(rows, path)
    pool = _pool(rows, groups, parts[TRAIN])
    given = VAL in parts
    missing = KINDS[rows.schema.kind].check_candidates(rows.targets[parts[TRAIN]], rows.schema.names, path)
    seen = fingerprint(rows)
    division = divide_pool(request, pool, path, given, seen)
    record = division.record
    notes = [*rows.notes, *missing, *_duplicate_notes(rows), *division.notes(pool, rows.schema.names)]
    if not given:
        drawn = parts[TRAIN]
        parts |= {TRAIN: drawn[division.train], VAL: drawn[division.val]}
    sources = {role: rows.source(those) for role, those in parts.items()}
    _check_training(sources[TRAIN], rows.schema, path)
    record["counts"] = {role: len(source) for role, source in sources.items()}
    test = sources.get(TEST)
    return Splits(sources[TRAIN], sources[VAL], test, rows.schema, seen, record, tuple(notes))


def _given_parts(rows: Rows, path: Path) -> dict[str, Any]:
    """The rows of each role that the table names; all are for training where it names none."""
    if rows.roles is None:
        return {TRAIN: np.arange(len(rows.paths))}
    roles = np.array(rows.roles)
    parts = {role: np.flatnonzero(roles == role) for role in (TRAIN, VAL, TEST) if role in rows.roles}
    if TRAIN not in parts:
        raise UserError(f"{path} has no rows for training, only for {' and '.join(parts)}.", "Name some of them train.")
    _check_apart(rows.paths, rows.roles, path, "images")
    if rows.groups is not None:
        _check_apart(rows.groups, rows.roles, path, "groups (data.group)")
    return parts


def _check_apart(names: Sequence[str], roles: Sequence[str], path: Path, what: str) -> None:
    first: dict[str, str] = {}
    torn: dict[str, None] = {}
    for name, role in zip(names, roles, strict=True):
        if first.setdefault(name, role) != role:
            torn[name] = None
    if torn:
        raise UserError(
            f"{path} has {len(torn)} {what} in more than one of its splits: {shortened(list(torn), 5)}.",
            "What is trained on must not validate or test. Put each in one split.",
        )


def _groups_of_images(rows: Rows, path: Path) -> Sequence[str] | None:
    """What must stay together: the groups, or the rows of one image where it has several."""
    if rows.groups is None:
        return rows.paths if len(set(rows.paths)) < len(rows.paths) else None
    first: dict[str, str] = {}
    pairs = zip(rows.paths, rows.groups, strict=True)
    if torn := [image for image, group in pairs if first.setdefault(image, group) != group]:
        raise UserError(f"{path} has {len(torn)} images in more than one group: {shortened(torn, 5)}.")
    return rows.groups


def _pool(rows: Rows, groups: Sequence[str] | None, those: Any) -> Pool:
    chosen = None if groups is None else [groups[row] for row in those]
    return Pool([rows.paths[row] for row in those], rows.schema.kind, rows.targets[those], chosen)


def _check_training(source: LabelledFileSource, schema: Schema, path: Path) -> None:
    if source.weights is not None and not source.weights.any():
        raise UserError(f"{path}: the weights of all {len(source)} images for training are 0.")
    KINDS[schema.kind].check_training(source.targets, schema.names, path)


def _duplicate_notes(rows: Rows) -> Iterator[str]:
    if doubles := len(rows.paths) - len(set(rows.paths)):
        yield f"{doubles} rows name an image that an earlier one has named; each row is a sample, all on one side."


def fingerprint(rows: Rows) -> str:
    """A hash of all that the columns say and of the images' sizes, whatever the order of the table's rows."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join([rows.schema.kind, *rows.schema.names]).encode())
    targets = np.ascontiguousarray(rows.targets)
    count = len(rows.paths)
    weights = [""] * count if rows.weights is None else [repr(weight) for weight in rows.weights.tolist()]
    texts = zip(rows.paths, rows.sizes, weights, rows.groups or [""] * count, rows.roles or [""] * count, strict=True)
    for target, row in zip(targets, texts, strict=True):
        digest.update(os.fsencode("\0".join(map(str, row))) + b"\n")
        digest.update(target.tobytes())
    return digest.hexdigest()
