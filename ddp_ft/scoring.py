"""Evaluation and prediction with a trained model, on any number of processes."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddp_ft.config import DataConfig, make_config
from ddp_ft.contracts import Source
from ddp_ft.data import (
    DeviceTransform,
    EvalLoader,
    FileSource,
    default_workers,
    eval_transform,
    list_pictures,
    open_folder,
    open_splits,
)
from ddp_ft.distributed import World, connect, pick_device
from ddp_ft.engine import Scorer
from ddp_ft.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.inference import EVAL_CHUNK, Trained, load_trained
from ddp_ft.runfolder import RunFolder

TIMEOUT_MINUTES = make_config().compute.timeout_minutes
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def score_model(model: Path, data: Path, split: str | None, device_name: str, launch: Launch) -> dict[str, Any]:
    """Metrics of a trained model on a data set, with the split and the number of samples, on every rank."""
    device = pick_device(device_name, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        trained = load_trained(model, device)
        name, source = world.from_main(lambda: _open_source(model, data, split, trained.classes))
        loader = _loader(source, trained, world, launch)
        return {"split": name, "samples": len(source), **_scorer(trained, world).evaluate(loader, len(source))}


def _scorer(trained: Trained, world: World) -> Scorer:
    prepare = DeviceTransform(trained.preprocess, world.device, trained.channels_last)
    return Scorer(trained.module, trained.task, prepare, world, trained.precision)


def _loader(source: Source, trained: Trained, world: World, launch: Launch) -> EvalLoader:
    workers = default_workers(world.device.type, launch.local_world_size)
    transform = eval_transform(trained.preprocess)
    return EvalLoader(source, transform, EVAL_CHUNK, world.size, world.rank, workers)


def _open_source(model: Path, data: Path, split: str | None, classes: Sequence[str]) -> tuple[str, Source]:
    """The part of the data that is asked for; val if there is one, else everything."""
    if split in (None, "val", "train") and (record := _drawn_split(model, data)):
        splits = open_splits(DataConfig(path=data), 0, record)
        return ("train", splits.train) if split == "train" else ("val", splits.val)
    for name in [split] if split else ["val", "all"]:
        folders = [data / folder for folder in SPLIT_FOLDERS.get(name, (".",))]
        if found := [folder for folder in folders if folder.is_dir()]:
            return name, open_folder(found[0], classes)
    raise UserError(
        f"{data} has no {split or 'val'} part.",
        "Expected a folder with that part, or --split all for a folder of class folders.",
    )


def _drawn_split(model: Path, data: Path) -> dict[str, Any] | None:
    """The run's split.json, if its validation set was drawn from this very data."""
    run = model.parent if model.name == "best" else model
    record = RunFolder(run).read_json("split.json")
    if record is None or "val" not in record or not isinstance(record["val"], list):
        return None
    try:
        return record if open_splits(DataConfig(path=data), 0, record).fingerprint == record["fingerprint"] else None
    except UserError:
        return None  # other data: its files are not those of the split


def predict_files(
    model: Path, inputs: Sequence[str], output: Path, device_name: str, launch: Launch
) -> tuple[int, int]:
    """Write one CSV row for each picture, in input order; gives the number of rows and of those with an error."""
    device = pick_device(device_name, launch)
    with connect(launch, device, TIMEOUT_MINUTES) as world:
        trained = load_trained(model, device)
        paths = world.from_main(lambda: _checked(inputs, output))
        mine = dict(_predict_share(paths, trained, world, launch))
        gathered = world.gather(mine)
        return world.from_main(lambda: _write_csv(output, paths, gathered or [], trained.classes))


def _checked(inputs: Sequence[str], output: Path) -> list[Path]:
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}.")
    return list_pictures(inputs)


Outcome = list[float] | str  # probabilities, or why there are none


def _predict_share(paths: list[Path], trained: Trained, world: World, launch: Launch) -> Iterator[tuple[int, Outcome]]:
    scorer = _scorer(trained, world)
    for portion in _loader(FileSource(paths), trained, world, launch).portions():
        yield from portion.damaged.items()
        if portion.batch is not None:
            shares = trained.task.probabilities(scorer.outputs(portion.batch))
            yield from zip(portion.batch["index"].tolist(), shares.tolist(), strict=True)


def _write_csv(
    output: Path, paths: list[Path], gathered: list[dict[int, Outcome]], classes: Sequence[str]
) -> tuple[int, int]:
    outcomes = {index: outcome for part in gathered for index, outcome in part.items()}
    assert sorted(outcomes) == list(range(len(paths))), "prediction must give one row for each input"
    aside = output.with_name(f".{output.name}.writing")
    with aside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "class", "probability", *(f"prob_{name}" for name in classes), "error"])
        writer.writerows(_row(path, outcomes[index], classes) for index, path in enumerate(paths))
    aside.replace(output)
    return len(paths), sum(isinstance(outcome, str) for outcome in outcomes.values())


def _row(path: Path, outcome: Outcome, classes: Sequence[str]) -> list[Any]:
    if isinstance(outcome, str):
        return [path, "", "", *("" for _ in classes), outcome]
    best = max(range(len(classes)), key=outcome.__getitem__)
    return [path, classes[best], f"{outcome[best]:.6f}", *(f"{p:.6f}" for p in outcome), ""]
