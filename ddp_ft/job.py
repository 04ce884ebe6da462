"""The parts of a run: composed from a configuration, restored from a checkpoint, saved to one."""

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.allocator import keep_freed_memory
from ddp_ft.checkpoint import Checkpoints, load_checkpoint, restore_weights
from ddp_ft.config import RunConfig
from ddp_ft.contracts import BuiltModel, LoadReport, Task
from ddp_ft.data import DeviceTransform, GlobalOrderSampler, Splits, default_workers, open_splits
from ddp_ft.distributed import World
from ddp_ft.engine import Learner, averaged_statistics, batch_statistics, replicate
from ddp_ft.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, load_weights
from ddp_ft.models.head import initialise_head
from ddp_ft.optim import check_optimizer, make_optimizer, param_groups
from ddp_ft.plan import Plan, make_plan, place
from ddp_ft.progress import LossWindow, Progress
from ddp_ft.runfolder import RunFolder, check_same_data
from ddp_ft.schedule import epoch_of
from ddp_ft.tasks import make_task
from ddp_ft.trackers import Console

# How long files written by rank 0 may take to show up on other nodes (attribute caches of network file systems).
SHARED_FOLDER_PATIENCE = 5.0


@dataclass(frozen=True)
class Request:
    """What is wanted besides the recipe."""

    run_dir: Path
    extend: bool = False
    dry_run: bool = False


@dataclass
class Job:
    """The parts of a run, composed. `progress` is the one part that changes as the run goes on."""

    config: RunConfig
    world: World
    folder: RunFolder
    splits: Splits
    task: Task
    built: BuiltModel
    plan: Plan
    learner: Learner
    prepare: DeviceTransform
    sampler: GlobalOrderSampler
    progress: Progress
    window: LossWindow
    checkpoints: Checkpoints

    @property
    def epoch(self) -> float:
        """Epochs passed."""
        return epoch_of(self.progress.step, self.plan.steps_per_epoch)


def compose(
    config: RunConfig, request: Request, world: World, launch: Launch, console: Console
) -> tuple[Job, LoadReport]:
    """All parts of a run, at its first step; nothing is written yet."""
    if world.device.type == "cpu":
        keep_freed_memory()
    check_optimizer(config.optim.name)
    folder = RunFolder(request.run_dir)
    splits = world.from_main(lambda: _open_data(folder, config))
    task = make_task(config, splits.schema)
    task.higher_is_better(config.eval.metric)
    assert config.model.name is not None  # the command line has checked
    torch.manual_seed(config.seed)
    built = build_model(config.model.name, task.outputs, config.model.image_size, config.model.weights)
    initialise_head(built.module, built.head)
    workers = config.data.workers
    if workers is None:
        workers = default_workers(world.device.type, launch.local_world_size)
    plan = make_plan(config, world, built.module, task.name, (len(splits.train), len(splits.val)), workers)
    report = _load_weights(built, config, world)
    place(built.module, world.device, plan.channels_last)
    world.broadcast_module(built.module)
    replica = replicate(built.module, world, launch.distributed)
    if isinstance(replica, nn.DataParallel):
        console.say(_advise_torchrun())
    optimizer = make_optimizer(param_groups(built.module, built.head, config.optim), config.optim)
    prepare = DeviceTransform(built.preprocess, world.device, plan.channels_last)
    learner = Learner(replica, task, optimizer, prepare, world, plan.precision, config.train.clip_norm)
    sampler = GlobalOrderSampler(len(splits.train), config.train.batch_size, world.size, world.rank, config.seed)
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint.keep)
    window = LossWindow(torch.zeros(2, device=world.device))
    job = Job(
        config,
        world,
        folder,
        splits,
        task,
        built,
        plan,
        learner,
        prepare,
        sampler,
        Progress(),
        window,
        checkpoints,
    )
    return job, report


def _open_data(folder: RunFolder, config: RunConfig) -> Splits:
    stored = folder.read_json("split.json")
    splits = open_splits(config.data, config.seed, stored)
    check_same_data(folder, splits.fingerprint)
    return splits


def _load_weights(built: BuiltModel, config: RunConfig, world: World) -> LoadReport:
    name, weights = config.model.name, config.model.weights
    return world.from_main(lambda: load_weights(built, name or "", weights))


def _advise_torchrun() -> str:
    gpus = torch.cuda.device_count()
    return (
        f"Warning: one process drives {gpus} GPUs through DataParallel, which is slow. "
        f"Faster: torchrun --nproc_per_node={gpus} -m ddp_ft.train ..."
    )


def open_folder(job: Job) -> None:
    """Make the run folder and write what a run is described by; check that every node sees it."""
    folder, world = job.folder, job.world
    token = world.from_main(lambda: _create_folder(job))
    sees = _wait_for(folder.path / ".shared", token)
    seen = world.gather(sees)
    blind = world.from_main(lambda: [rank for rank, good in enumerate(seen or []) if not good])
    if blind:
        raise UserError(
            f"Run folder {folder.path} is not shared: rank 0 wrote to it, "
            f"but rank(s) {', '.join(map(str, blind))} do not see that.",
            "Give --run-dir a folder on a file system that all nodes mount.",
        )


def _create_folder(job: Job) -> str:
    folder = job.folder
    folder.create()
    (folder.path / "summary.json").unlink(missing_ok=True)
    folder.write_config(job.config)
    folder.write_json("classes.json", list(job.splits.schema.classes))
    if folder.read_json("split.json") is None:
        folder.write_json("split.json", {"fingerprint": job.splits.fingerprint, **job.splits.record})
    folder.write_json("plan.json", job.plan.to_mapping())
    token = secrets.token_hex(8)
    (folder.path / ".shared").write_text(token)
    return token


def _wait_for(file: Path, content: str) -> bool:
    deadline = time.monotonic() + SHARED_FOLDER_PATIENCE
    while not (file.is_file() and file.read_text() == content):
        if time.monotonic() > deadline:
            return False
        if file.parent.is_dir():
            os.scandir(file.parent).close()  # refreshes the cache of a network file system
        time.sleep(0.1)
    return True


def restore(job: Job) -> None:
    """Go on from the newest checkpoint, if there is one."""
    latest = job.world.from_main(job.checkpoints.latest)
    if latest is None:
        return
    weights, state = load_checkpoint(latest)
    restore_weights(job.built.module, weights)
    own = state["statistics"]
    if len(own) == job.world.size:  # with another number of ranks all take the mean, which `weights` holds
        for name, tensor in batch_statistics(job.built.module).items():
            tensor.copy_(own[job.world.rank][name])
    job.learner.optimizer.load_state_dict(state["optimizer"])
    job.learner.scaler.load_state_dict(state["scaler"])
    job.window.sums.copy_(state["window"])
    job.progress = Progress.from_mapping(state["progress"])
    job.progress.restarts += 1


def save(job: Job) -> None:
    """Write a checkpoint from which any number of ranks can go on."""
    module, progress = job.built.module, job.progress
    own = {name: tensor.detach().cpu().clone() for name, tensor in batch_statistics(module).items()}
    statistics = job.world.gather(own)
    with averaged_statistics(module, job.world):
        state = {
            "statistics": statistics,
            "optimizer": job.learner.optimizer.state_dict(),
            "scaler": job.learner.scaler.state_dict(),
            "window": job.window.sums,
            "progress": progress.to_mapping(),
        }
        is_best = progress.best.step == progress.step
        job.world.from_main(lambda: _write_checkpoint(job, state, is_best))


def _write_checkpoint(job: Job, state: dict[str, Any], is_best: bool) -> None:
    job.checkpoints.save(job.progress.step, job.built.module.state_dict(), state, is_best)
