"""The data that a trained model is evaluated on: what is named, or its run's own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddp_ft.config.data import DataConfig
from ddp_ft.config.loading import make_config
from ddp_ft.contracts import Source
from ddp_ft.data.sources.table_file import read_header
from ddp_ft.data.splits.open import open_part, schema_in
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import Trained, refuse_code_inside
from ddp_ft.run_folder.folder import RunFolder


def open_source(
    model: Path, data: Path | None, split: str | None, trained: Trained, settings: Mapping[str, Any] | None = None
) -> tuple[str, Source]:
    """The requested part of the data, or of the run's own, split as the model's run did; its name, and its samples.

    The run's own settings, such as a table's columns, hold unless `settings` has others.
    """
    run, data = _run_of(model), data or _own_data(model)
    stored, changed = run.stored_config(), make_config(settings or {}).data
    names = [path.partition(".")[2] for path in settings or {}]
    base = stored.data if stored else DataConfig()
    config = replace(base, **{name: getattr(changed, name) for name in names}, path=data)
    schema = schema_in(data, trained.task.kinds, trained.names)
    return open_part(config, schema, split, run.split())


def check_unseen(models: Sequence[Path], data: Path | None, split: str | None) -> None:
    """UserError for models of several folds and the data that these were cut from: all but one of them have learned
    from each of its images."""
    if len(models) == 1:  # the record of a large set takes a while to read
        return
    folds = {str((_run_of(model).split() or {}).get("fold")) for model in models}
    stored = _run_of(models[0]).stored_config()
    own = stored.data.path if stored else None
    is_own = data is None or (own is not None and data.resolve() == own.resolve())
    if len(folds) > 1 and is_own and split != "test":
        hint = "Use --split test, or --data of other images. Each fold's own result: kfold.json of ddp-ft kfold."
        raise UserError("The models of several folds have learned from each other's validation images.", hint)


def _own_data(model: Path) -> Path:
    """The data of the model's own run. UserError if it has none, or they are not where they were."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None:
        raise UserError(f"{model} belongs to no run folder, whose data could be used.", "Name data: --data DATA.")
    if not stored.data.is_there:
        raise UserError(f"The run's data, {stored.data.path}, is not there any more.", "Name it: --data DATA.")
    refuse_code_inside(_run_of(model).path, [stored.data.path])
    return stored.data.path


def own_validation(model: Path, trained: Trained) -> Source | None:
    """The validation set of the model's own run; None if it is not there, or has changed."""
    stored = _run_of(model).stored_config()
    if stored is None or stored.data.path is None or not stored.data.is_there:
        return None
    with suppress(UserError):
        return open_source(model, stored.data.path, None, trained)[1]
    return None


def own_column(model: Path, inputs: Sequence[str]) -> str | None:
    """The column of paths, or of texts, in the table of the model's run, if a table among the inputs has it."""
    with suppress(UserError):  # a damaged config.yaml, which nothing else in a prediction needs
        if (stored := _run_of(model).stored_config()) is not None:
            own = stored.data.text or stored.data.image
            return own if any(own in read_header(Path(given)) for given in inputs) else None
    return None


def _run_of(model: Path) -> RunFolder:
    """The run folder that a model belongs to: the folder itself, or the parent of a model folder."""
    return RunFolder(model.absolute().parent if (model / "model.json").is_file() else model)
