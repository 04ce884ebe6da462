"""Evaluation, and what follows from it: which model is the best so far, and whether training still gains."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial

from ddp_ft.contracts import PROBE, TRAIN, Evaluation
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.models.batch_norm import averaged_statistics
from ddp_ft.run_folder.background_writer import BEST, copied, in_order
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
from ddp_ft.trackers.fan_out import FanOut
from ddp_ft.training.media import show_evaluation, show_spread
from ddp_ft.training.progress import Best
from ddp_ft.training.schedule import Plateau
from ddp_ft.training.state import Job


def validate(job: Job, trackers: FanOut) -> bool:
    """Evaluate the weights, and their average where there is one; keep in best/ what is best so far.

    False if all ranks were asked to stop on the way: nothing has changed then, and the evaluation is still due.
    """
    assert job.phase is not None
    try:
        results = _measure_all(job)
    except StopAgreed:
        return False
    best = job.progress.best.metrics
    before = score(job, best) if best else -math.inf
    job.score = max(score(job, found.metrics) for found in results.values())
    winners = [found for kind, found in results.items() if _keep_if_best(job, found, kind)]
    row = {
        ("" if kind == "raw" else "ema_") + name: value
        for kind, found in results.items()
        for name, value in found.metrics.items()
    }
    job.progress.evaluation_due = False
    trackers.log("val", job.progress.step, job.epoch, row, job.phase.name)
    show_spread(job, trackers)
    if winners:
        show_evaluation(job, winners[-1], "val", trackers)
    if job.phase.name == TRAIN:
        _count_patience(job, before, row[job.metric])
    return True


def _measure_all(job: Job) -> dict[str, Evaluation]:
    """Evaluations of the weights ("raw") and of their average ("ema")."""
    assert job.phase is not None
    results = {}
    for kind in _kinds(job):
        with _weights(job, kind), averaged_statistics(job.built.module, job.world):
            results[kind] = job.phase.measure()
    return results


def _kinds(job: Job) -> tuple[str, ...]:
    return ("raw",) if job.ema is None or job.progress.phase == PROBE else ("raw", "ema")


def _weights(job: Job, kind: str) -> AbstractContextManager[None]:
    return job.ema.swapped(job.built.module) if job.ema and kind == "ema" else nullcontext()


def _keep_if_best(job: Job, evaluation: Evaluation, kind: str) -> bool:
    """Begin to write the model to best/ if it is better than the one there; whether it is."""
    progress, best, metrics = job.progress, job.progress.best, evaluation.metrics
    if best.metrics and score(job, metrics) <= score(job, best.metrics):
        return False
    progress.best = Best(progress.step, job.epoch, progress.phase, kind, metrics)
    with _weights(job, kind), averaged_statistics(job.built.module, job.world):
        if job.world.is_main:
            description = describe_model(
                job.built.spec, job.built.preprocess, job.task, job.splits.schema.names, job.plan.precision,
                job.plan.channels_last,
            )  # fmt: skip
            weights = copied(job.built.module.state_dict())
            keep_model = partial(save_model_folder, job.folder.best, weights, description)
            keep_outputs = partial(save_evaluation, job.folder.path, "val", evaluation)
            job.writer.submit(BEST, partial(in_order, keep_outputs, keep_model))
    return True


def score(job: Job, metrics: dict[str, float]) -> float:
    """The metric that decides, as a number of which more is better; NaN is worst."""
    value = metrics[job.metric]
    upwards = value if job.task.higher_is_better(job.metric) else -value
    return -math.inf if math.isnan(upwards) else upwards


def plateau(job: Job) -> Plateau:
    """The falls of the plateau schedule so far."""
    return Plateau(**job.progress.plateau)


def is_stale(job: Job) -> bool:
    """Whether early stopping has had enough."""
    return 0 < job.config.eval.patience <= job.progress.stale


def _count_patience(job: Job, before: float, value: float) -> None:
    """Count evaluations without a better one, for early stopping and for the plateau schedule."""
    progress, config = job.progress, job.config
    gained = score(job, progress.best.metrics) - before > config.eval.min_gain
    progress.stale = 0 if gained else progress.stale + 1
    if config.schedule.name == "plateau":
        upwards = job.task.higher_is_better(job.metric)
        schedule = config.schedule
        falls = (schedule.patience, schedule.gamma, schedule.final_factor)
        progress.plateau = asdict(plateau(job).after(value, upwards, *falls))
