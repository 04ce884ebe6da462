"""The splits of a folder: the files in its class folders, and their classes."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LABEL, LabelledSource, Schema
from ddp_ft.data.roles import ALL, TEST, TRAIN, VAL
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.index import Index, load_index, store_index
from ddp_ft.data.sources.scan import (
    Listing,
    check_scannable,
    fingerprint,
    list_roles,
    loose_samples,
    subfolders,
)
from ddp_ft.data.sources.table_file import SUFFIXES, is_table
from ddp_ft.data.sources.unicode_forms import KnownNames
from ddp_ft.data.splits.folder_roles import TOP, check_meaning, folders_by_role, inner_root, part_of
from ddp_ft.data.splits.record import SplitRequest, Splits, divide_pool
from ddp_ft.data.splits.stratify import Pool
from ddp_ft.errors import UserError, shortened

EXAMPLE = "Expected train/CLASS/*.jpg and val/CLASS/*.jpg, or one folder a class: CLASS/*.jpg"
# Keys that only a table can follow.
_TABLE_KEYS = ("image", "text", "text_pair", "target", "group", "weight", "split", "separator", "unknown")


def takes(path: Path) -> bool:
    """Any path that no other layout takes."""
    return True


def target_kind(kinds: Sequence[str]) -> str:
    """One label each, for any task that can learn that."""
    return LABEL if LABEL in kinds else kinds[0]


def config_for(config: DataConfig, root: Path, schema: Schema) -> DataConfig:
    """The folder alone: it has no columns. UserError if it is not there, or the model is not for one class each."""
    _check_folder(root)
    if schema.kind != LABEL:
        raise UserError(f"{root} is a folder of classes; the model was trained for other targets.", "Give a table.")
    return DataConfig(path=root, class_folders=config.class_folders)


def open_part(config: DataConfig, root: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
    """The files of that part's class folders; of all below the root for "all"."""
    root = inner_root(config, root)
    for name in [split] if split else [VAL, ALL]:
        if part := root if name == ALL else part_of(config, root, name):
            return name, open_folder(part, schema.names)
    hint = "Expected a folder with that part, or --split all for a folder of class folders."
    raise UserError(f"{root} has no {split} part.", hint)


def open_folder(folder: Path, classes: Sequence[str]) -> LabelledFileSource:
    """The class folders in `folder` as a source whose targets are places in `classes`, a model's.

    UserError if the folder cannot be read, holds no samples, or has a class that the model lacks.
    """
    _check_folder(folder)
    listing = list_roles({TRAIN: folder}, folder)[TRAIN]
    if unknown := KnownNames(classes).unknown(listing.classes):
        hint = f"The model's classes: {shortened(classes)}."
        raise UserError(f"{folder} has class folders that the model does not know: {shortened(unknown)}.", hint)
    if not listing.paths:
        hint = f"Expected e.g. {folder}/{classes[0]}/1.jpg"
        raise UserError(f"There are no images in class folders in {folder}.", hint)
    return LabelledFileSource(folder, listing.paths, listing.labels(classes), kind=listing.kind.name)


def open_splits(request: SplitRequest, root: Path, task: str) -> Splits:
    """As `Layout`. Raises UserError for a key that only a table can follow, too."""
    _check_folder(root)
    _check_keys(request.config, root)
    given, root = root, inner_root(request.config, root)
    folders, notes = folders_by_role(request.config, root)
    notes += [f"The parts of {given} are in {root}."] if root != given else []
    index = _open_index(root, folders)
    if request.stored is None and request.config.class_folders != TOP:
        check_meaning(index.parts[TRAIN])
    parts, classes = index.parts, tuple(index.parts[TRAIN].classes)
    sources = {
        role: LabelledFileSource(root, part.paths, part.labels(classes), kind=part.kind.name)
        for role, part in parts.items()
    }
    train = sources[TRAIN]
    pool = Pool(train.paths, LABEL, train.targets)
    division = divide_pool(request, pool, root, VAL in sources, index.fingerprint)
    record = division.record
    if not record["given"]:
        sources |= {TRAIN: _subset(train, division.train), VAL: _subset(train, division.val)}
    record["counts"] = {role: len(source) for role, source in sources.items()}
    notes += [note for part in parts.values() for note in _part_notes(part)]
    if alike := KnownNames(classes).alike():
        notes.append(f"Classes whose names differ only in their Unicode form: {shortened(alike)}. Are they one class?")
    notes += division.notes(pool, classes)
    return Splits(
        sources[TRAIN],
        sources[VAL],
        sources.get(TEST),
        Schema(LABEL, classes),
        index.fingerprint,
        record,
        tuple(notes),
        inventory=request.inventory(index.fingerprint, sum(len(part.paths) for part in parts.values()), _files(parts)),
    )


def _files(parts: Mapping[str, Listing]) -> Iterator[tuple[str, int]]:
    """The path and the size in bytes of each file."""
    for part in parts.values():
        yield from zip(part.paths, part.sizes.tolist(), strict=True)


def _open_index(root: Path, folders: Mapping[str, Path]) -> Index:
    """What is in the folders, as it was stored or else as it is found now."""
    if stored := load_index(root, folders):
        return stored
    begun = time.time()
    parts = list_roles(folders, root)
    for role, part in parts.items():
        _check_part(part, is_train=role == TRAIN)
    _check_classes(parts)
    index = Index(parts, fingerprint(parts, parts[TRAIN].classes))
    store_index(root, folders, index, begun)
    return index


def _subset(source: LabelledFileSource, chosen: NDArray[np.bool_]) -> LabelledFileSource:
    return LabelledFileSource(Path(source.root), source.paths.where(chosen), source.targets[chosen], kind=source.kind)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        check_scannable(folder, f"--data {folder}")
        return
    if folder.exists():
        if folder.suffix == ".py":
            raise UserError(f"--data {folder} names no data set in it.", f"Did you mean {folder}:NAME?")
        hint = f"A table ends in {', '.join(SUFFIXES)}. Unpack an archive first."
        raise UserError(f"--data {folder} is a file; expected a folder or a table.", hint)
    near = next(parent for parent in folder.absolute().parents if parent.is_dir())
    raise UserError(f"--data {folder} does not exist.", f"In {near}: {shortened(subfolders(near)) or 'no folders'}.")


def _check_keys(config: DataConfig, root: Path) -> None:
    plain = DataConfig()
    if given := [f"data.{name}" for name in _TABLE_KEYS if getattr(config, name) != getattr(plain, name)]:
        hint = "Leave it out, or give a .csv or .parquet file to --data."
        raise UserError(f"{', '.join(given)}: this is for tables, and {root} is a folder.", hint)


def _check_part(part: Listing, is_train: bool) -> None:
    """UserError without images; and for empty class folders, but not for one that is merely without validation."""
    if not part.paths:
        loose = loose_samples(part.folder)
        hint = f"{EXAMPLE}\nImages are files that end in {part.kind.suffix_list}; texts in .txt."
        if loose:
            advice = _elsewhere(part.folder) or "Put each into a folder with its class's name."
            hint = f"Images in it directly: {loose}. {advice}\n{EXAMPLE}"
        raise UserError(f"There are no images in class folders in {part.folder}.", hint)
    if is_train and (empty := _empty_classes(part)):
        hint = f"Put {part.kind.name}s in ({part.kind.suffix_list}), or move the folders elsewhere."
        raise UserError(f"Class folders without {part.kind.name}s in {part.folder}: {shortened(empty)}.", hint)


def _elsewhere(folder: Path) -> str:
    """Where the labels may be: in a table in the folder or beside it, or in the names of folders beside this one."""
    above = Path(os.path.normpath(folder / ".."))
    tables = [each for place in (folder, above) for each in sorted(place.iterdir()) if is_table(each)]
    if tables:
        return f"If a table has the labels, name it: {' or '.join(f'--data {each}' for each in tables[:2])}."
    beside = [each for each in subfolders(above) if loose_samples(above / each)]
    return f"If {shortened(beside, 3)} are the classes: --data {above}" if len(beside) > 1 else ""


def _empty_classes(part: Listing) -> list[str]:
    return [name for name, count in zip(part.classes, part.counts, strict=True) if not count]


def _part_notes(part: Listing) -> Iterator[str]:
    folder, others, noun = part.folder, part.others, part.kind.name
    if empty := _empty_classes(part):
        yield f"{folder} has no {noun}s of these classes, which no metric there measures: {shortened(empty)}."
    if loose := loose_samples(folder, part.kind):
        yield f"{noun.capitalize()}s beside the class folders of {folder} are ignored: {loose}."
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
        yield f"Files in {folder} that are no {noun}s are ignored: {sum(others.values())} ({kinds})."
    if part.outputs:
        names = [os.path.relpath(output, folder) for output in part.outputs]
        yield f"Folders in {folder} that hold runs, models or programs are left out: {shortened(names, 5)}."


def _check_classes(parts: Mapping[str, Listing]) -> None:
    folder, classes = parts[TRAIN].folder, parts[TRAIN].classes
    if len(classes) < 2:
        inner = folder / classes[0]
        hint = f"Did you mean --data {inner}?" if len(subfolders(inner)) > 1 else _elsewhere(folder) or EXAMPLE
        raise UserError(f"{folder} has one class only, {classes[0]}; expected two or more.", hint)
    for part in parts.values():
        if unknown := KnownNames(classes).unknown(part.classes):
            hint = f"Classes of {folder}: {shortened(classes)}."
            raise UserError(f"{part.folder} has classes that training lacks: {shortened(unknown)}.", hint)
