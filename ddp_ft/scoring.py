"""Evaluation and prediction with a trained model, on any number of processes."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_ft.config import DataConfig, make_config
from ddp_ft.contracts import LABEL, Batch, Schema, Source, Task
from ddp_ft.data import (
    DeviceTransform,
    EvalLoader,
    FileSource,
    default_workers,
    eval_transform,
    left_out,
    list_pictures,
    open_part,
)
from ddp_ft.distributed import World, connect, pick_device
from ddp_ft.engine import Scorer
from ddp_ft.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.inference import EVAL_CHUNK, Trained, combine_members, load_ensemble
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
            _scorer(member, world).collect(_loader(source, member, world, launch), len(source)) for member in members
        ]
        lost = {"damaged": len(left_out(source))} if left_out(source) else {}
        return {"split": name, "samples": len(source), **lost, **world.from_main(lambda: _metrics(members, collected))}


def _metrics(members: Sequence[Trained], collected: Sequence[tuple[Tensor, Batch] | None]) -> dict[str, float]:
    outputs, records = zip(*(each for each in collected if each is not None), strict=True)
    return members[0].task.metrics(combine_members(members, outputs), records[0])


def _scorer(trained: Trained, world: World) -> Scorer:
    prepare = DeviceTransform(trained.preprocess, world.device, trained.channels_last)
    return Scorer(trained.module, trained.task, prepare, world, trained.precision)


def _loader(source: Source, trained: Trained, world: World, launch: Launch) -> EvalLoader:
    workers = default_workers(world.device.type, launch.local_world_size)
    transform = eval_transform(trained.preprocess)
    pin_memory = world.device.type == "cuda"
    return EvalLoader(source, transform, EVAL_CHUNK, world.size, world.rank, workers, pin_memory)


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


def predict_files(
    models: Sequence[Path], inputs: Sequence[str], output: Path, views: str, device_name: str, launch: Launch
) -> tuple[int, int]:
    """Write one CSV row for each picture, in input order; gives the number of rows and of those with an error.

    Several models predict as one; `views` is one of inference.VIEWS.
    """
    device = pick_device(device_name, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        members = load_ensemble(models, device, views)
        paths = world.from_main(lambda: _checked(inputs, output))
        mine = dict(_predict_share(paths, members, world, launch))
        gathered = world.gather(mine)
        return world.from_main(lambda: _write_csv(output, paths, gathered or [], members[0].task))


def _checked(inputs: Sequence[str], output: Path) -> list[Path]:
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}.")
    return list_pictures(inputs)


Outcome = list[float] | str  # a row of Task.predictions, or why there is none


def _predict_share(
    paths: list[Path], members: Sequence[Trained], world: World, launch: Launch
) -> Iterator[tuple[int, Outcome]]:
    source, task = FileSource(paths), members[0].task
    scorers = [_scorer(member, world) for member in members]
    # Side by side, chunk by chunk: each member wants pictures of its own size.
    passes = [_loader(source, member, world, launch).portions() for member in members]
    for portions in zip(*passes, strict=True):
        yield from portions[0].damaged.items()
        batches = [portion.batch for portion in portions if portion.batch is not None]
        if batches:
            outputs = [scorer.outputs(batch) for scorer, batch in zip(scorers, batches, strict=True)]
            shares = task.predictions(combine_members(members, outputs))
            yield from zip(batches[0]["index"].tolist(), shares.tolist(), strict=True)


def _write_csv(output: Path, paths: list[Path], gathered: list[dict[int, Outcome]], task: Task) -> tuple[int, int]:
    outcomes = {index: outcome for part in gathered for index, outcome in part.items()}
    assert sorted(outcomes) == list(range(len(paths))), "prediction must give one row for each input"
    aside = output.with_name(f".{output.name}.writing")
    # Names that are no UTF-8 get escapes.
    with aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *task.columns(), "error"])
        writer.writerows(_row(path, outcomes[index], task) for index, path in enumerate(paths))
    aside.replace(output)
    return len(paths), sum(isinstance(outcome, str) for outcome in outcomes.values())


def _row(path: Path, outcome: Outcome, task: Task) -> list[Any]:
    if isinstance(outcome, str):
        return [path, *("" for _ in task.columns()), outcome]
    return [path, *task.row(outcome), ""]
