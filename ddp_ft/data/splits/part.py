"""One part of a data set, for a trained model: with the model's classes, and the split that its run drew."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import DataConfig
from ddp_ft.config.tasks import fitting_tasks
from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.bad_samples.replace import leave_out_damaged
from ddp_ft.data.roles import ALL, TEST, TRAIN, VAL
from ddp_ft.data.splits.layouts import layout_of
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError


def open_part(
    config: DataConfig, schema: Schema, split: str | None, stored: Mapping[str, Any] | None
) -> tuple[str, LabelledSource]:
    """The part of the data that is asked for, and its name: "train", "val", "test" or "all".

    `split` None is val if there is one, else all. `schema` is the model's, and numbers the classes. `stored` is
    split.json of the model's run; it says what validates where the data is the run's own. Of `config`, the run's
    with another `path` perhaps, groups and weights do not matter. With on_error = skip the part comes without its
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


def schema_in(path: Path, kinds: Sequence[str], names: tuple[str, ...]) -> Schema:
    """What the targets there are for a task that can learn these kinds, with a model's names."""
    return Schema(layout_of(path).target_kind(kinds), names)


def _open_part(
    config: DataConfig, schema: Schema, split: str | None, stored: Mapping[str, Any] | None
) -> tuple[str, LabelledSource]:
    if split not in (None, TRAIN, VAL, TEST, ALL):
        raise UserError(f"--split {split} is none of train, val, test and all.")
    path = config.path
    if path is None:
        raise UserError("No data is given.", "Example: --data ~/pets")
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
