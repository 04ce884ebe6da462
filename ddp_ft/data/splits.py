"""Which pictures are for training, validation and test: given by folders, drawn, or read back."""

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
from ddp_ft.contracts import Schema
from ddp_ft.data.folder import FolderSource, check_folder, shortened
from ddp_ft.data.inspect import find_pictures, is_picture, loose_files, subfolders, suffix_list
from ddp_ft.errors import UserError

TRAIN, TEST = "train", "test"
VAL_NAMES = ("val", "valid", "validation")
_EXAMPLE = "Expected train/CLASS/*.jpg and val/CLASS/*.jpg, or one folder a class: CLASS/*.jpg"


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    `fingerprint` hashes paths, sizes and labels of all pictures, whichever split they are in. `record` is what
    split.json stores, and what `open_splits` takes back. `notes` are lines to print.
    """

    train: FolderSource
    val: FolderSource
    test: FolderSource | None
    schema: Schema
    fingerprint: str
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Part:
    """The pictures of one folder of class folders; `labels` number `classes`, the names of those folders."""

    folder: Path
    classes: list[str]
    paths: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    notes: list[str] = field(default_factory=list)


def open_splits(config: DataConfig, seed: int, stored: Mapping[str, Any] | None = None) -> Splits:
    """Look at the data folder and split it, or take the split that is stored (split.json of a run).

    Raises UserError, with all that is wrong of its kind in one message, for a folder that is missing, empty or
    of another layout, for a single class, empty class folders, classes that train/ lacks, too few pictures to
    split, and for a stored split whose files are gone.
    """
    if config.path is None:
        raise UserError("No data is given.", f"Example: --data ~/pets\n{_EXAMPLE}")
    check_folder(config.path)
    folders, notes = _layout(config.path)
    parts = {role: _read_part(config.path, folder) for role, folder in folders.items()}
    _check_classes(config.path, parts)
    sources = {role: _source(config.path, part, parts[TRAIN].classes) for role, part in parts.items()}
    record = _record(config, seed, parts, sources, stored)
    if not record["given"]:
        sources[TRAIN], sources["val"] = _divide(sources[TRAIN], record)
    record["counts"] = {role: len(source) for role, source in sources.items()}
    notes += [note for part in parts.values() for note in part.notes]
    notes += _unknown_note(parts, record)
    schema = Schema(tuple(parts[TRAIN].classes))
    return Splits(sources[TRAIN], sources["val"], sources.get(TEST), schema, _fingerprint(parts), record, tuple(notes))


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
    known = {TRAIN: TRAIN, TEST: TEST} | dict.fromkeys(VAL_NAMES, "val")
    roles: dict[str, str] = {}
    for name in names:
        role = known.get(name.lower())
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
        return f"{loose} pictures lie in it directly; put each into a folder with its class's name.\n{_EXAMPLE}"
    return f"{_EXAMPLE}\nPictures are files that end in {suffix_list()}."


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
        hint = f"Did you mean --data {inner}?" if len(subfolders(inner)) > 1 else _EXAMPLE
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


def _record(
    config: DataConfig,
    seed: int,
    parts: Mapping[str, _Part],
    sources: Mapping[str, FolderSource],
    stored: Mapping[str, Any] | None,
) -> dict[str, Any]:
    given = "val" in parts
    if stored is not None:
        _check_stored(config.path, stored, parts, given)
        return dict(stored)
    if given:
        return {"given": True}
    train, val = _draw(sources[TRAIN], len(parts[TRAIN].classes), config.val_split, seed)
    if not val:
        hint = "Add pictures, or a val/ folder beside train/."
        raise UserError(f"{parts[TRAIN].folder} has too few pictures to hold some back for validation.", hint)
    return {"given": False, "seed": seed, "val_split": config.val_split, "train": train, "val": val}


def _draw(source: FolderSource, classes: int, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Paths for training and validation, each sorted; of every class with two pictures at least one on each side.

    A picture's place in the draw is a hash of (seed, path): no library's generator decides, and a few new
    pictures move few of the others.
    """
    val: list[str] = []
    drawn = sorted(range(len(source)), key=lambda index: _hash(seed, source.paths[index]))
    counts = np.bincount(source.labels, minlength=classes)
    left = [min(max(round(count * share), 1), count - 1) for count in counts.tolist()]
    for index in drawn:
        label = source.labels[index]
        if left[label]:
            left[label] -= 1
            val.append(source.paths[index])
    held_back = set(val)
    return [path for path in source.paths if path not in held_back], sorted(val)


def _hash(seed: int, path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(f"{seed},{path}"), digest_size=8).digest()


def _divide(source: FolderSource, record: Mapping[str, Any]) -> tuple[FolderSource, FolderSource]:
    labels = dict(zip(source.paths, source.labels.tolist(), strict=True))
    train, val = (_subset(source, labels, record[role]) for role in (TRAIN, "val"))
    return train, val


def _subset(source: FolderSource, labels: Mapping[str, int], paths: Sequence[str]) -> FolderSource:
    return FolderSource(Path(source.root), list(paths), np.array([labels[path] for path in paths], np.int64))


def _check_stored(root: Path | None, stored: Mapping[str, Any], parts: Mapping[str, _Part], given: bool) -> None:
    if stored["given"] != given:
        was, now = ("with", "without") if stored["given"] else ("without", "with")
        raise UserError(f"The run began {was} a validation folder in {root}, which is now {now} one.")
    if given:
        return
    here = set(parts[TRAIN].paths)
    gone = [path for path in (*stored[TRAIN], *stored["val"]) if path not in here]
    if gone:
        hint = "Put them back, or start a new run in another --run-dir."
        raise UserError(f"{len(gone)} pictures of this run are gone from {root}: {shortened(gone)}.", hint)


def _unknown_note(parts: Mapping[str, _Part], record: Mapping[str, Any]) -> list[str]:
    if record["given"]:
        return []
    new = len(parts[TRAIN].paths) - len(record[TRAIN]) - len(record["val"])
    return [f"{new} pictures are new since the run began and are left out."] if new else []


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
