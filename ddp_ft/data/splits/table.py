"""The splits of a table: from its column of splits, or drawn, by whole groups if it has any."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.roles import ALL, TEST, TRAIN, VAL
from ddp_ft.data.sources.table import Rows, read_rows
from ddp_ft.data.sources.table_file import is_table
from ddp_ft.data.splits.record import SplitRequest, Splits, divide_pool
from ddp_ft.data.splits.stratify import Pool
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened
from ddp_ft.texts import plural


def takes(path: Path) -> bool:
    """Whether it is a table by its name."""
    return is_table(path)


def target_kind(kinds: Sequence[str]) -> str:
    """The task's own."""
    return kinds[0]


def config_for(config: DataConfig, path: Path, schema: Schema) -> DataConfig:
    """The same: the columns are those that the model was trained on."""
    return config


def open_part(config: DataConfig, path: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
    """The rows of that part by the column of splits; all rows for "all"."""
    rows = read_rows(replace(config, group=None, weight=None, folds=None), path, schema=schema)
    roles = rows.roles or []
    name = split or (VAL if VAL in roles else ALL)
    chosen = range(len(rows.names)) if name == ALL else [row for row, role in enumerate(roles) if role == name]
    if not chosen:
        known = " and ".join(sorted(set(roles)))
        hint = f"Its column of splits has {known}." if known else "It has no column of splits (data.split)."
        raise UserError(f"{path} has no {name} rows.", f"{hint} --split all takes all rows.")
    return name, rows.source(list(chosen))


def open_splits(request: SplitRequest, path: Path, task: str) -> Splits:
    """As `Layout`.

    Raises UserError as `read_rows` does, and for an image or group on two sides of the given splits, classes that
    training lacks, targets that are all the same, and weights that are all 0.
    """
    rows = read_rows(request.config, path, task)
    parts = _given_parts(rows, path)
    _check_folds(rows, path)
    groups = _groups_of_doubles(rows, path)
    schema, candidates, given = rows.schema, parts[TRAIN], VAL in parts
    pool = _pool(rows, groups, candidates)
    missing = KINDS[schema.kind].check_candidates(pool.targets, schema.names, path)
    seen = fingerprint(rows)
    division = divide_pool(request, pool, path, given, seen)
    notes = [*rows.notes, *missing]
    noun = rows.contents.noun
    article = "an" if noun == "image" else "a"
    if doubles := len(rows.names) - len(set(rows.names)):
        notes.append(
            f"{plural(doubles, 'row names', 'rows name')} {article} {noun} of an earlier row; each row is a sample, "
            "all on one side."
        )
    notes += division.notes(pool, schema.names)
    if not given:
        parts |= {TRAIN: candidates[division.train], VAL: candidates[division.val]}
    sources = {role: rows.source(chosen) for role, chosen in parts.items()}
    train = sources[TRAIN]
    if train.weights is not None and not train.weights.any():
        raise UserError(f"{path}: the weights of all {len(train)} {noun}s for training are 0.")
    KINDS[schema.kind].check_training(train.targets, schema.names, path)
    division.record["counts"] = {role: len(source) for role, source in sources.items()}
    inventory = request.inventory(seen, len(rows.names), zip(rows.names, _facts(rows), strict=True))
    test, record = sources.get(TEST), division.record
    return Splits(train, sources[VAL], test, schema, seen, record, tuple(notes), inventory=inventory)


def _given_parts(rows: Rows, path: Path) -> dict[str, Any]:
    """The rows of each role that the table names; all are for training if it names none."""
    if rows.roles is None:
        return {TRAIN: np.arange(len(rows.names))}
    roles = np.array(rows.roles)
    parts = {role: np.flatnonzero(roles == role) for role in (TRAIN, VAL, TEST) if role in rows.roles}
    if TRAIN not in parts:
        raise UserError(f"{path} has no rows for training, only for {' and '.join(parts)}.", "Name some of them train.")
    _check_apart(rows.names, rows.roles, path, (rows.contents.noun, f"{rows.contents.noun}s"))
    if rows.groups is not None:
        _check_apart(rows.groups, rows.roles, path, ("group (data.group)", "groups (data.group)"))
    return parts


def _check_folds(rows: Rows, path: Path) -> None:
    """UserError for an image or group in several folds."""
    if rows.folds is None:
        return
    for names, noun in ((rows.names, rows.contents.noun), (rows.groups, "group")):
        if names is not None and (torn := _torn(names, rows.folds)):
            hint = "What is trained on must not validate. Put each in one fold."
            raise UserError(f"{path} has {plural(len(torn), noun)} in more than one fold: {shortened(torn, 5)}.", hint)


def _check_apart(names: Sequence[str], roles: Sequence[str], path: Path, nouns: tuple[str, str]) -> None:
    if torn := _torn(names, roles):
        hint = "What is trained on must not validate or test. Put each in one split."
        message = f"{path} has {plural(len(torn), *nouns)} in more than one of its splits: {shortened(torn, 5)}."
        raise UserError(message, hint)


def _torn(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The names that are in more than one part, each once, in their order."""
    first: dict[str, str] = {}
    pairs = zip(names, parts, strict=True)
    return list(dict.fromkeys(name for name, part in pairs if first.setdefault(name, part) != part))


def _groups_of_doubles(rows: Rows, path: Path) -> Sequence[str] | None:
    """The groups that stay together: the table's, or the rows of each image or text if some have several."""
    if rows.groups is None:
        return rows.names if len(set(rows.names)) < len(rows.names) else None
    if torn := _torn(rows.names, rows.groups):
        raise UserError(
            f"{path} has {plural(len(torn), rows.contents.noun)} in more than one group: {shortened(torn, 5)}."
        )
    return rows.groups


def _pool(rows: Rows, groups: Sequence[str] | None, chosen: Any) -> Pool:
    kept = None if groups is None else [groups[row] for row in chosen]
    folds = None if rows.folds is None else [rows.folds[row] for row in chosen]
    return Pool([rows.names[row] for row in chosen], rows.schema.kind, rows.targets[chosen], kept, folds)


def fingerprint(rows: Rows) -> str:
    """A hash of all columns and of the contents' sizes, whatever the order of the table's rows."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join([rows.schema.kind, *rows.schema.names]).encode())
    for path, (target, *facts) in zip(rows.names, _facts(rows), strict=True):
        digest.update(os.fsencode("\0".join(map(str, [path, *facts]))) + b"\n")
        digest.update(target)
    return digest.hexdigest()


def _facts(rows: Rows) -> Iterator[tuple[Any, ...]]:
    """Of each row, beside its name: the target's bytes, the size, the weight, the group, the role, the fold."""
    nothing = [""] * len(rows.names)
    weights = nothing if rows.weights is None else [repr(weight) for weight in rows.weights.tolist()]
    targets = (target.tobytes() for target in np.ascontiguousarray(rows.targets))
    facts = [targets, rows.contents.sizes.tolist(), weights, rows.groups or nothing, rows.roles or nothing]
    if rows.folds is not None:  # tables without them keep their fingerprints
        facts.append(rows.folds)
    return zip(*facts, strict=True)
