"""The splits of a folder: which of its folders play which role, and which classes they hold."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config import DataConfig
from ddp_ft.contracts import LABEL, Schema
from ddp_ft.data.divide import Pool
from ddp_ft.data.folder import FolderSource, check_folder, shortened
from ddp_ft.data.inspect import find_pictures, is_picture, loose_files, subfolders, suffix_list
from ddp_ft.data.split_record import ROLES, TEST, TRAIN, VAL, Splits, check_stored, make_record, record_notes, side_of
from ddp_ft.errors import UserError

EXAMPLE = "Expected train/CLASS/*.jpg and val/CLASS/*.jpg, or one folder a class: CLASS/*.jpg"
# What says something about the columns of a table.
_TABLE_KEYS = ("image", "target", "group", "weight", "split", "separator")


@dataclass
class _Part:
    """The pictures of one folder of class folders; `labels` number `classes`, the names of those folders."""

    folder: Path
    classes: list[str]
    paths: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    notes: list[str] = field(default_factory=list)


def open_folder_splits(config: DataConfig, root: Path, seed: int, stored: Mapping[str, Any] | None) -> Splits:
    """`open_splits` for a folder. Raises UserError as it says, and for a key that only a table could follow."""
    check_folder(root)
    _check_keys(config, root)
    folders, notes = _layout(root)
    parts = {role: _read_part(root, folder) for role, folder in folders.items()}
    _check_classes(root, parts)
    classes = tuple(parts[TRAIN].classes)
    sources = {role: _source(root, part, classes) for role, part in parts.items()}
    train = sources[TRAIN]
    pool = Pool(train.paths, LABEL, train.targets)
    if stored is not None:
        check_stored(root, stored, pool.names, VAL in sources)
    record = dict(make_record(config, seed, pool, root, VAL in sources) if stored is None else stored)
    if not record["given"]:
        sources |= {role: _subset(train, side_of(pool.names, record, role)) for role in (TRAIN, VAL)}
    record["counts"] = {role: len(source) for role, source in sources.items()}
    notes += [note for part in parts.values() for note in part.notes]
    notes += record_notes(pool, record, classes)
    schema = Schema(LABEL, classes)
    return Splits(sources[TRAIN], sources[VAL], sources.get(TEST), schema, _fingerprint(parts), record, tuple(notes))


def _check_keys(config: DataConfig, root: Path) -> None:
    plain = DataConfig()
    set_ones = [f"data.{name}" for name in _TABLE_KEYS if getattr(config, name) != getattr(plain, name)]
    if set_ones:
        hint = "Leave it out, or give a .csv or .parquet file to --data."
        raise UserError(f"{', '.join(set_ones)}: this is for tables, and {root} is a folder.", hint)


def _subset(source: FolderSource, chosen: Sequence[int]) -> FolderSource:
    return FolderSource(Path(source.root), [source.paths[index] for index in chosen], source.targets[chosen])


def _layout(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Folder of each split ("train", "val", "test"), and notes; without train/ the root is the training folder."""
    names = subfolders(root)
    roles = _roles(root, names)
    if TRAIN not in roles:
        _check_lone_roles(root, roles)
        return {TRAIN: root}, []
    ignored = [name for name in names if name not in roles.values()]
    notes = [f"Beside train/ these folders are ignored: {shortened(ignored)}."] if ignored else []
    folders = {role: root / name for role, name in roles.items()}
    if TEST in folders and not subfolders(folders[TEST]):
        notes.append(f"{folders.pop(TEST)} has no class folders and is ignored.")
    return folders, notes


def _roles(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Which folder plays which role. Case is not looked at: Train/ and Val/ as classes would be nonsense."""
    roles: dict[str, str] = {}
    for name in names:
        role = ROLES.get(name.lower())
        if role in roles:
            raise UserError(f"{root} has both {roles[role]}/ and {name}/.", "Keep one of them.")
        if role:
            roles[role] = name
    # A class may be called "train" (cars, trains, planes): then it holds pictures and not class folders.
    if TRAIN in roles and len(names) > len(roles) and not subfolders(root / roles[TRAIN]):
        return {}
    return roles


def _check_lone_roles(root: Path, roles: Mapping[str, str]) -> None:
    lone = [name for name in roles.values() if subfolders(root / name)]
    if lone:
        raise UserError(f"{root} has {lone[0]}/ but no train/.", f"Move the training class folders into {root}/train.")


def _read_part(root: Path, folder: Path) -> _Part:
    part = _Part(folder, subfolders(folder))
    prefix = "" if folder == root else f"{folder.name}/"
    others: Counter[str] = Counter()
    counts = []
    for name in part.classes:
        found = find_pictures(folder / name, f"{prefix}{name}/")
        part.paths += found.paths
        part.sizes += found.sizes
        others += found.others
        counts.append(len(found.paths))
    part.labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    _check_part(part, counts)
    part.notes = list(_part_notes(folder, others))
    return part


def _check_part(part: _Part, counts: Sequence[int]) -> None:
    if not part.paths:
        raise UserError(f"There are no pictures in class folders in {part.folder}.", _empty_hint(part.folder))
    empty = [name for name, count in zip(part.classes, counts, strict=True) if not count]
    if empty:
        hint = f"Remove them, or put pictures in ({suffix_list()})."
        raise UserError(f"Class folders without pictures in {part.folder}: {shortened(empty)}.", hint)


def _empty_hint(folder: Path) -> str:
    loose = sum(count for suffix, count in loose_files(folder).items() if is_picture(f"a{suffix}"))
    if loose:
        return f"{loose} pictures lie in it directly; put each into a folder with its class's name.\n{EXAMPLE}"
    return f"{EXAMPLE}\nPictures are files that end in {suffix_list()}."


def _part_notes(folder: Path, others: Counter[str]) -> Iterator[str]:
    loose = sum(count for suffix, count in loose_files(folder).items() if is_picture(f"a{suffix}"))
    if loose:
        yield f"{loose} pictures beside the class folders of {folder} are ignored."
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        yield f"{sum(others.values())} files in {folder} are no pictures and are ignored ({kinds})."


def _check_classes(root: Path, parts: Mapping[str, _Part]) -> None:
    classes = parts[TRAIN].classes
    if len(classes) < 2:
        inner = parts[TRAIN].folder / classes[0]
        hint = f"Did you mean --data {inner}?" if len(subfolders(inner)) > 1 else EXAMPLE
        raise UserError(f"{parts[TRAIN].folder} has one class only, {classes[0]}; expected two or more.", hint)
    for part in parts.values():
        unknown = sorted(set(part.classes) - set(classes))
        if unknown:
            hint = f"Classes of {parts[TRAIN].folder}: {shortened(classes)}."
            raise UserError(f"{part.folder} has classes that training lacks: {shortened(unknown)}.", hint)


def _source(root: Path, part: _Part, classes: Sequence[str]) -> FolderSource:
    numbers = {name: number for number, name in enumerate(classes)}
    translated = np.array([numbers[name] for name in part.classes], np.int64)[part.labels]
    # Sorted by the whole path, which is not the order of the classes' names where one begins with another.
    order = sorted(range(len(part.paths)), key=part.paths.__getitem__)
    return FolderSource(root, [part.paths[k] for k in order], translated[order])


def _fingerprint(parts: Mapping[str, _Part]) -> str:
    numbers = {name: number for number, name in enumerate(parts[TRAIN].classes)}
    rows = sorted(
        (path, size, numbers[part.classes[label]])
        for part in parts.values()
        for path, size, label in zip(part.paths, part.sizes, part.labels.tolist(), strict=True)
    )
    digest = hashlib.blake2b(digest_size=16)
    for path, size, label in rows:
        digest.update(os.fsencode(f"{path}\0{size}\0{label}\n"))
    return digest.hexdigest()
