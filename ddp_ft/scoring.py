"""Evaluation with a trained model, on any number of processes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_ft.config import DataConfig, make_config
from ddp_ft.contracts import LABEL, Batch, Schema, Source, Task
from ddp_ft.data import left_out, open_part
from ddp_ft.distributed import connect, pick_device
from ddp_ft.environment import Launch
from ddp_ft.inference import Trained, combine_members, load_ensemble, make_loader, make_scorer
from ddp_ft.runfolder import RunFolder
from ddp_ft.tasks import FITTING_TASKS

TIMEOUT_MINUTES = make_config().compute.timeout_minutes


def score_models(
    models: Sequence[Path], data: Path, split: str | None, views: str, device_name: str, launch: Launch
) -> dict[str, Any]:
    """Metrics of a trained model, or of several as one, on a data set; with the split and the number of samples.

    On every rank. The split is that of the first model's run; `views` is one of inference.VIEWS. Where that run goes
    on without damaged pictures (data.on_error), so does this, and tells how many there were.
    """
    device = pick_device(device_name, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        members = load_ensemble(models, device, views)
        name, source = world.from_main(lambda: _open_source(models[0], data, split, members[0]))
        collected = [
            make_scorer(member, world).collect(make_loader(source, member, world, launch), len(source))
            for member in members
        ]
        lost = {"damaged": len(left_out(source))} if left_out(source) else {}
        return {"split": name, "samples": len(source), **lost, **world.from_main(lambda: _metrics(members, collected))}


def _metrics(members: Sequence[Trained], collected: Sequence[tuple[Tensor, Batch] | None]) -> dict[str, float]:
    outputs, records = zip(*(each for each in collected if each is not None), strict=True)
    return members[0].task.metrics(combine_members(members, outputs), records[0])


def _run_of(model: Path) -> RunFolder:
    """The run folder that a model belongs to: the folder itself, or the one that its model folder lies in."""
    return RunFolder(model.absolute().parent if (model / "model.json").is_file() else model)


def _data_config(run: RunFolder, data: Path) -> DataConfig:
    """How the run reads its data, a table's columns and all, with another path."""
    stored = run.stored_config()
    return replace(stored.data, path=data) if stored else DataConfig(path=data)


def _open_source(model: Path, data: Path, split: str | None, trained: Trained) -> tuple[str, Source]:
    """The part of the data that is asked for, split as the model's run did."""
    run = _run_of(model)
    schema = Schema(_kind_of(trained.task, data), trained.names)
    return open_part(_data_config(run, data), schema, split, run.read_json("split.json"))


def _kind_of(task: Task, data: Path) -> str:
    """What the task wants the data's targets to be; folders have one label for each picture, for either task."""
    kinds = [kind for kind, tasks in FITTING_TASKS.items() if task.name in tasks]
    return LABEL if LABEL in kinds and not data.is_file() else kinds[-1]
