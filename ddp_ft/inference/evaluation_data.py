"""The data of a trained model: the images of its run, or others with the run's classes."""

from dataclasses import replace
from pathlib import Path

from ddp_ft.config.schema import DataConfig
from ddp_ft.contracts import Source
from ddp_ft.data.splits.part import open_part, schema_in
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import Trained
from ddp_ft.run_folder.folder import RunFolder


def open_source(model: Path, data: Path, split: str | None, trained: Trained) -> tuple[str, Source]:
    """The part of the data that is asked for, split as the model's run did; its name, and the images."""
    run = _run_of(model)
    schema = schema_in(data, trained.task.kinds, trained.names)
    return open_part(_data_config(run, data), schema, split, run.read_json("split.json"))


def own_validation(model: Path, trained: Trained) -> Source | None:
    """The validation set of the model's own run; None where that is not at hand, or not as it was."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None or not stored.data.path.exists():
        return None
    try:
        return open_source(model, stored.data.path, None, trained)[1]
    except UserError:
        return None


def _run_of(model: Path) -> RunFolder:
    """The run folder that a model belongs to: the folder itself, or the one that its model folder lies in."""
    return RunFolder(model.absolute().parent if (model / "model.json").is_file() else model)


def _data_config(run: RunFolder, data: Path) -> DataConfig:
    """How the run reads its data, a table's columns and all, with another path."""
    stored = run.stored_config()
    return replace(stored.data, path=data) if stored else DataConfig(path=data)
