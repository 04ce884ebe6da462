"""A job's state: copied and handed to the background writer, and taken up again."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.keys import LENGTH
from ddp_ft.config.loading import to_flat
from ddp_ft.models.batch_norm import averaged_statistics, batch_statistics, in_one, in_parts
from ddp_ft.run_folder.background_writer import CHECKPOINT, copied, in_order
from ddp_ft.run_folder.checkpoints import load_checkpoint, load_ema
from ddp_ft.run_folder.model_folder import recover_model_folder, restore_weights
from ddp_ft.training.ema import Ema
from ddp_ft.training.progress import Progress
from ddp_ft.training.state import Job


def save(job: Job, before: Callable[[], None]) -> None:
    """Copy all that training depends on, and write it in the background as a checkpoint from which any number of ranks
    can go on. `before` is run first in the background: what must be durable before the checkpoint is."""
    began = time.perf_counter()
    assert job.phase is not None
    module, progress = job.built.module, job.progress
    statistics = _gather(job, batch_statistics(module))
    ema_statistics = _gather(job, _statistics_of(job.ema, job)) if job.ema else []
    progress.saves += 1
    with averaged_statistics(module, job.world):
        write = _write_later(job, statistics, ema_statistics) if job.world.is_main else None
    progress.copy_seconds += time.perf_counter() - began
    if write is not None:
        began = time.perf_counter()
        job.writer.submit(CHECKPOINT, partial(in_order, before, write))
        progress.stall_seconds += time.perf_counter() - began
    job.saved_at = time.monotonic()


def _gather(job: Job, statistics: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """On rank 0 each rank's statistics, copied to the CPU; in one vector, since each of many would be pickled."""
    names, tensors = list(statistics), list(statistics.values())
    vectors = job.world.gather(copied(in_one(tensors))) or []
    return [dict(zip(names, in_parts(vector, tensors), strict=True)) for vector in vectors]


def _write_later(
    job: Job, statistics: list[dict[str, Tensor]], ema_statistics: list[dict[str, Tensor]]
) -> Callable[[], Any]:
    """The writing of copies of the present state: nothing that training does from now on changes them."""
    assert job.phase is not None
    learner, progress, ema = job.phase.learner, job.progress, None
    state = {
        "statistics": statistics,
        "ema": {"count": job.ema.count, "statistics": ema_statistics} if job.ema else {},
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "window": job.window.sums,
        "progress": progress.to_mapping(),
    }
    if job.ema is not None:
        means = {name: torch.stack([own[name] for own in ema_statistics]).mean(0) for name in ema_statistics[0]}
        ema = copied({**job.ema.tensors, **means})
    weights = copied(job.built.module.state_dict())
    return partial(
        job.checkpoints.save, progress.step, weights, copied(state), job.score, ema=ema, phase=progress.phase
    )


def restore(job: Job) -> list[str]:
    """Go on from the newest checkpoint that is whole, if there is one; gives what was wrong with newer ones.

    The phase's own state waits until the phase is opened. UserError if none of the checkpoints is whole.
    """
    latest, troubles = job.world.from_main(lambda: _find(job))
    length = to_flat(job.config, [LENGTH])
    if latest is not None:
        weights, state = load_checkpoint(latest)
        restore_weights(job.built.module, weights)
        _restore_statistics(job, batch_statistics(job.built.module), state["statistics"])
        if job.ema is not None:
            job.ema.load({"count": state["ema"]["count"], "tensors": load_ema(latest)})
            _restore_statistics(job, _statistics_of(job.ema, job), state["ema"]["statistics"])
        job.window.sums.copy_(state["window"])
        job.progress = Progress.from_mapping(state["progress"])
        job.progress.restarts += 1
        if job.progress.length != length:  # --extend: the run has a new end
            job.progress.budget, job.progress.stale = None, 0
        job.pending = state
    job.progress.length = length
    return troubles


def _find(job: Job) -> tuple[Any, list[str]]:
    recover_model_folder(job.folder.best)
    return job.checkpoints.newest_sound()


def _restore_statistics(job: Job, tensors: Mapping[str, Tensor], stored: list[dict[str, Tensor]]) -> None:
    if len(stored) == job.world.size:  # with another number of ranks all take the mean, which the weights hold
        for name, tensor in tensors.items():
            tensor.copy_(stored[job.world.rank][name])


def _statistics_of(ema: Ema, job: Job) -> dict[str, Tensor]:
    return {name: ema.tensors[name] for name in batch_statistics(job.built.module)}
