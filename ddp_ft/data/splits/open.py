"""The images for training, validation and test: given, drawn or read back; and a part for a trained model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import DataConfig, RunConfig
from ddp_ft.config.tasks import TASKS, fitting_tasks
from ddp_ft.contracts import LABEL, LabelledSource, Schema
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.bad_samples.replace import Lenient, leave_out_damaged, left_out
from ddp_ft.data.roles import ALL, TEST, TRAIN, VAL
from ddp_ft.data.sampler import sampling_weights
from ddp_ft.data.splits.folder import EXAMPLE
from ddp_ft.data.splits.layouts import layout_of
from ddp_ft.data.splits.record import SplitRequest, Splits
from ddp_ft.errors import UserError, printable, shortened
from ddp_ft.run_folder.folder import RunFolder


def open_splits(config: DataConfig, seed: int, stored: Mapping[str, Any] | None = None, task: str = "auto") -> Splits:
    """Read a folder or table and split it, or take the stored split (split.json of a run).

    `task` is the configuration's; it decides how a table's targets are read. Raises UserError, with all faults of one
    kind in one message: for data that is missing, empty, damaged or of another layout, for a single class, empty class
    folders, classes that training lacks, images that are not there, too few images to split, and for a stored split
    whose images are gone.

    With data.on_error = skip the validation and test sets are read now, and come without their damaged images; in
    the training set others take the place of damaged images when they are met. UserError if there are too many.
    """
    splits = layout_of(_path(config)).open_splits(SplitRequest(config, seed, stored), _path(config), task)
    splits = replace(splits, notes=(*splits.notes, *_notes_on_numbers(splits.schema)))
    if splits.record["given"] and config.val_split != DataConfig().val_split:
        note = f"--val-split does nothing: {config.path} itself names what validates."
        splits = replace(splits, notes=(*splits.notes, note))
    return _tolerant(splits, config, seed) if config.on_error == "skip" else splits


def open_splits_of(run_dir: Path, config: RunConfig) -> Splits:
    """The splits of a run's data, as `open_splits`. UserError too if they are not those that the run began with."""
    folder = RunFolder(run_dir)
    stored = folder.split()
    splits = open_splits(config.data, config.seed, stored, _task_of(folder, config))
    splits.check_same(stored, run_dir)
    if stored is None and config.data.fold:
        splits.check_same(folder.split_of_another_fold(), run_dir.parent)
    return splits


def _task_of(folder: RunFolder, config: RunConfig) -> str:
    """The task; of a run that has begun the one that it settled on, whatever its table looks like by now."""
    return config.task if config.task in TASKS else folder.settled_task() or config.task


def _path(config: DataConfig) -> Path:
    if config.path is None:
        raise UserError("No data is given.", f"Example: --data ~/pets\n{EXAMPLE}")
    return config.path


def _notes_on_numbers(schema: Schema) -> Iterator[str]:
    """A note on class names that are numbers, if their order is another one."""
    names = schema.names
    if schema.kind == LABEL and all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        numeric = sorted(names, key=int)
        if moved := [name for name, other in zip(names, numeric, strict=True) if name != other]:
            which = f"output {names.index(moved[0])} is class '{moved[0]}'"
            yield f"The classes' names are numbers, and sorted as texts: {which} (classes.json has them all)."


def _tolerant(splits: Splits, config: DataConfig, seed: int) -> Splits:
    """The splits with replacements in the training set and without damaged images in the others."""
    given = {TRAIN: splits.train, VAL: splits.val, **({TEST: splits.test} if splits.test else {})}
    quarantine = Quarantine({name: len(source) for name, source in given.items()}, config.max_damaged)
    rest = {name: leave_out_damaged(given[name], name, quarantine) for name in given if name != TRAIN}
    quarantine.check()
    train = splits.train
    weights = sampling_weights(config.sampling, train.targets, train.weights, splits.schema.kind)
    return replace(
        splits,
        train=Lenient(train, seed, weights, quarantine),
        val=rest[VAL],
        test=rest.get(TEST),
        notes=(*splits.notes, *_notes(given, rest)),
        quarantine=quarantine,
    )


def _notes(given: Mapping[str, LabelledSource], rest: Mapping[str, LabelledSource]) -> Iterator[str]:
    for name, source in rest.items():
        if lost := left_out(source):
            first = shortened([f"{printable(path)} ({printable(reason)})" for path, reason in lost.items()], 5)
            count = f"{len(lost)} of {len(given[name])} {name} {source.kind}s"
            yield f"{count} cannot be read and count in no metric: {first}."


def lenient(splits: Splits, seed: int) -> Splits:
    """The splits with samples to replace those of the training set, however many; the other sets as they are."""
    quarantine = Quarantine({TRAIN: len(splits.train)}, 1.0)
    return replace(splits, train=Lenient(splits.train, seed, None, quarantine))


def schema_in(path: Path, kinds: Sequence[str], names: tuple[str, ...]) -> Schema:
    """The schema of the targets there, for a task that can learn these kinds, with a model's names."""
    return Schema(layout_of(path).target_kind(kinds), names)


def open_part(
    config: DataConfig, schema: Schema, split: str | None, stored: Mapping[str, Any] | None
) -> tuple[str, LabelledSource]:
    """A part of the data for a trained model, and its name: "train", "val", "test" or "all".

    `split` None is val if there is one, else all. `schema` is the model's, and numbers the classes. `stored` is
    split.json of the model's run; it defines what validates if the data is the run's own. `config` is the run's,
    perhaps with another `path`; its groups and weights do not matter. With on_error = skip the part comes without its
    damaged images. Raises UserError for a part that is not there, for classes that the model lacks, and for data that
    cannot be read.
    """
    name, source = _open_part(replace(config, on_error="fail"), schema, split, stored)
    if config.on_error == "fail":
        return name, source
    quarantine = Quarantine({name: len(source)}, config.max_damaged)
    readable = leave_out_damaged(source, name, quarantine)
    quarantine.check()
    return name, readable


def _open_part(
    config: DataConfig, schema: Schema, split: str | None, stored: Mapping[str, Any] | None
) -> tuple[str, LabelledSource]:
    if split not in (None, TRAIN, VAL, TEST, ALL):
        raise UserError(f"--split {split} is none of train, val, test and all.")
    path = _path(config)
    layout = layout_of(path)
    config = layout.config_for(config, path, schema)
    if split in (None, VAL, TRAIN) and (source := _drawn_part(config, schema, split or VAL, stored)):
        return split or VAL, source
    return layout.open_part(config, path, schema, split)


def _drawn_part(
    config: DataConfig, schema: Schema, role: str, stored: Mapping[str, Any] | None
) -> LabelledSource | None:
    """That side of the split which the run drew, if it drew one from this very data."""
    if stored is None or not isinstance(stored.get(VAL), list):
        return None
    try:
        splits = open_splits(config, 0, stored, fitting_tasks(schema.kind)[0])
    except UserError:
        return None  # other data: its images are not those of the split
    if splits.fingerprint != stored["fingerprint"] or splits.schema != schema:
        return None
    return splits.train if role == TRAIN else splits.val
