"""Data for a trained model: that of its run, or other data with the run's classes."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import Source
from ddp_ft.data.splits.open import open_part, schema_in
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import Trained
from ddp_ft.run_folder.folder import RunFolder


def open_source(model: Path, data: Path, split: str | None, trained: Trained) -> tuple[str, Source]:
    """The requested part of the data, split as the model's run did; its name, and its samples."""
    run = _run_of(model)
    stored = run.stored_config()
    # With the settings of the run, such as a table's columns.
    config = replace(stored.data, path=data) if stored else DataConfig(path=data)
    schema = schema_in(data, trained.task.kinds, trained.names)
    return open_part(config, schema, split, run.read_json("split.json"))


def own_validation(model: Path, trained: Trained) -> Source | None:
    """The validation set of the model's own run; None if it is not there, or has changed."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None or not stored.data.path.exists():
        return None
    with suppress(UserError):
        return open_source(model, stored.data.path, None, trained)[1]
    return None


def _run_of(model: Path) -> RunFolder:
    """The run folder that a model belongs to: the folder itself, or the parent of a model folder."""
    return RunFolder(model.absolute().parent if (model / "model.json").is_file() else model)
