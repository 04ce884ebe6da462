"""One part of a data set, for a trained model: with the model's classes, and the split that its run drew."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import DataConfig
from ddp_ft.config.tasks import fitting_tasks
from ddp_ft.contracts import LABEL, LabelledSource, Schema
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.bad_samples.replace import leave_out_damaged
from ddp_ft.data.roles import ROLES, TEST, TRAIN, VAL
from ddp_ft.data.sources.folder import check_folder, open_folder
from ddp_ft.data.sources.scan import subfolders
from ddp_ft.data.sources.table import read_rows
from ddp_ft.data.sources.table_file import is_table
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError

ALL = "all"


def open_part(
    config: DataConfig, schema: Schema, split: str | None, stored: Mapping[str, Any] | None
) -> tuple[str, LabelledSource]:
    """The part of the data that is asked for, and its name: "train", "val", "test" or "all".

    `split` None is val if there is one, else all. `schema` is the model's, and numbers the classes. `stored` is
    split.json of the model's run; it says what validates where the data is the run's own. Of `config`, the run's
    with another `path` perhaps, groups and weights do not matter. With on_error = skip the part comes without its
    damaged pictures. Raises UserError for a part that is not there, for classes that the model lacks, and for data that
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
    path = config.path
    if path is None:
        raise UserError("No data is given.", "Example: --data ~/pets")
    if not is_table(path):
        check_folder(path)
        config = DataConfig(path=path)
        if schema.kind != LABEL:
            raise UserError(f"{path} is a folder of classes; the model was trained for other targets.", "Give a table.")
    if split in (None, VAL, TRAIN) and (source := _drawn_part(config, schema, split or VAL, stored)):
        return split or VAL, source
    return _table_part(config, path, schema, split) if is_table(path) else _folder_part(path, schema, split)


def _drawn_part(
    config: DataConfig, schema: Schema, role: str, stored: Mapping[str, Any] | None
) -> LabelledSource | None:
    """That side of the split which the run drew, if it drew one from this very data."""
    if stored is None or not isinstance(stored.get(VAL), list):
        return None
    try:
        splits = open_splits(config, 0, stored, fitting_tasks(schema.kind)[0])
    except UserError:
        return None  # other data: its pictures are not those of the split
    if splits.fingerprint != stored["fingerprint"] or splits.schema != schema:
        return None
    return splits.train if role == TRAIN else splits.val


def _folder_part(root: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
    for name in [split] if split else [VAL, ALL]:
        folders = (
            [root] if name == ALL else [root / each for each in subfolders(root) if ROLES.get(each.lower()) == name]
        )
        if folders:
            return name, open_folder(folders[0], schema.names)
    hint = "Expected a folder with that part, or --split all for a folder of class folders."
    raise UserError(f"{root} has no {split} part.", hint)


def _table_part(config: DataConfig, path: Path, schema: Schema, split: str | None) -> tuple[str, LabelledSource]:
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
