"""Several checkpoints of a run as one model: averages of their weights."""

from dataclasses import dataclass, replace
from pathlib import Path

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Log
from ddp_ft.data.splits.open import open_splits_of
from ddp_ft.data.splits.record import Splits
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.inference.adapted_model import load_for_average
from ddp_ft.inference.averager import Averager, in_words
from ddp_ft.run_folder.checkpoints import Checkpoints
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import (
    ADAPTER,
    model_folder,
    other_files,
    read_description,
    read_weights,
    save_model_folder,
)


@dataclass(frozen=True)
class AverageRequest:
    """What to average, into the new model folder `output`: exactly one of `last`, `best` and `greedy` is given.

    `data` None: the run's own, if it is still there.
    """

    run: Path
    output: Path
    last: int | None = None
    best: int | None = None
    greedy: bool = False
    data: Path | None = None
    device: str = "auto"


def average_checkpoints(request: AverageRequest, launch: Launch, log: Log) -> None:
    """Write the average of a run's checkpoints to a model folder, in one process.

    Batch norm's running statistics do not fit averaged weights. They are recomputed in one pass over the training set
    if the data is there (arXiv 1803.05407, section 3.2), else averaged as well.
    Raises UserError for a choice that cannot be met, and if `output` exists.
    """
    run, output, greedy = request.run, request.output, request.greedy
    _check(request, launch)
    folder = RunFolder(run)
    config = folder.stored_config()
    if config is None or not folder.checkpoints.is_dir():
        raise UserError(f"{run} is no run folder: it has no config.yaml or no checkpoints/.", "Expected runs/NAME.")
    device = pick_device(request.device, launch)
    splits = _open_data(folder, config, request.data, log)
    if greedy and splits is None:
        raise UserError("--greedy needs the validation set of the run.", "Add --data.")
    trained, reader = load_for_average(run, device)
    averager = Averager(trained, splits, device, config, reader)
    if splits is not None and not greedy:
        log(f"before, {folder.best}: {in_words(averager.measure(read_weights(folder.best / 'model.safetensors')))}")
    chosen = averager.greedy(_all_of(folder), log) if greedy else _choose(folder, request)
    weights = averager.average(chosen, log)
    if splits is not None:
        log(f"after,  average of {len(chosen)}: {in_words(averager.measure(weights))}")
    best = model_folder(run)
    description = {name: value for name, value in read_description(best).items() if name != ADAPTER}
    save_model_folder(output, weights, description, other_files(best))
    log(f"{output} is the average of {', '.join(folder.name for folder in chosen)}.")


def _check(request: AverageRequest, launch: Launch) -> None:
    given = sum([request.last is not None, request.best is not None, request.greedy])
    if given != 1:
        raise UserError(
            f"{given or 'None'} of --last, --best and --greedy are given; expected one.",
            "--last K: the newest; --best K: by their validation; --greedy: those that help.",
        )
    if launch.world_size > 1:
        raise UserError(f"average runs as one process, not as {launch.world_size}.", "Start it without torchrun.")
    if not request.run.is_dir():
        raise UserError(f"{request.run} is not there.", "Expected a run folder.")
    if request.output.exists():
        raise UserError(f"--output {request.output} exists already.", "Choose a new folder, or remove that one.")


def _open_data(folder: RunFolder, config: RunConfig, data: Path | None, log: Log) -> Splits | None:
    """The run's data: at `data`, else where the run found it; None if it is no longer there."""
    path = data or config.data.path
    if path is None:
        return None
    try:
        return open_splits_of(folder.path, replace(config, data=replace(config.data, path=path)))
    except UserError as error:
        if data is not None:
            raise
        log(f"Note: the run's data is not used. {error.message}")
        return None


def _all_of(folder: RunFolder) -> list[Path]:
    found = Checkpoints(folder.checkpoints, keep=1).complete()
    if not found:
        raise UserError(f"{folder.path} has no checkpoints.")
    return found


def _choose(folder: RunFolder, request: AverageRequest) -> list[Path]:
    """The checkpoints of --last or --best, oldest first."""
    store = Checkpoints(folder.checkpoints, keep=1)
    count = request.last or request.best or 0
    there = store.complete()[::-1] if request.last else store.ranking()
    if len(there) < count:
        kind, key = ("checkpoints", "keep") if request.last else ("checkpoints with a validation", "keep_best")
        raise UserError(
            f"{count} {kind} are needed; {folder.path} has {len(there)}.",
            f"A run keeps checkpoint.{key} of them: train it with --set checkpoint.{key}={count}.",
        )
    return sorted(there[:count])
