"""Evaluation, and what follows from it: which model is the best so far, and whether training still gains."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from ddp_ft.contracts import PROBE, TRAIN, Evaluation
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.models.batch_norm import averaged_statistics
from ddp_ft.run_folder.background_writer import BEST, copied, in_order
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
from ddp_ft.training.phase import Phase
from ddp_ft.training.progress import Best, Progress
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.schedule import Plateau
from ddp_ft.training.state import TrainState

# Whose an evaluation is: of the weights, or of their moving average; and what its metrics begin with.
RAW, AVERAGED = "raw", "ema"
PREFIXES = {RAW: "", AVERAGED: "ema_"}


def validate(run: Run, state: TrainState, phase: Phase, recorder: Recorder) -> bool:
    """Evaluate the weights, and their average where there is one; keep in best/ what is best so far.

    False if all ranks were asked to stop on the way: nothing has changed then, and the evaluation is still due.
    """
    recorder.evaluating()
    try:
        results = _measure_all(run, state, phase)
    except StopAgreed:
        return False
    progress, best = state.progress, state.progress.best.metrics
    before = score(run, best) if best else -math.inf
    state.score = max(score(run, found.metrics) for found in results.values())
    winners = [found for kind, found in results.items() if _keep_if_best(run, state, phase, kind, found)]
    progress.evaluation_due = False
    row = {f"{PREFIXES[kind]}{name}": value for kind, found in results.items() for name, value in found.metrics.items()}
    recorder.evaluation(row, winners[-1] if winners else None)
    if phase.name == TRAIN:
        _count_patience(run, progress, before, row[run.metric])
    return True


def _measure_all(run: Run, state: TrainState, phase: Phase) -> dict[str, Evaluation]:
    """Evaluations of the weights ("raw") and of their average ("ema")."""
    kinds = (RAW,) if state.ema is None or phase.name == PROBE else (RAW, AVERAGED)
    results = {}
    for kind in kinds:
        with _weights(state, kind), averaged_statistics(state.module, run.world):
            results[kind] = phase.measure()
    return results


def _weights(state: TrainState, kind: str) -> AbstractContextManager[None]:
    return state.ema.swapped(state.module) if state.ema and kind == AVERAGED else nullcontext()


def _keep_if_best(run: Run, state: TrainState, phase: Phase, kind: str, evaluation: Evaluation) -> bool:
    """Begin to write the model to best/ if it is better than the one there; whether it is."""
    progress, best, metrics = state.progress, state.progress.best, evaluation.metrics
    if best.metrics and score(run, metrics) <= score(run, best.metrics):
        return False
    progress.best = Best(progress.step, phase.epoch(progress.step), phase.name, kind, metrics)
    with _weights(state, kind), averaged_statistics(state.module, run.world):
        if run.world.is_main:
            keep_model = partial(save_model_folder, run.folder.best, copied(state.module.state_dict()), _describe(run))
            keep_outputs = partial(save_evaluation, run.folder.path, "val", evaluation)
            run.writer.submit(BEST, partial(in_order, keep_outputs, keep_model))
    return True


def _describe(run: Run) -> dict[str, Any]:
    model, plan = run.model, run.plan
    names, precision = run.splits.schema.names, plan.precision
    return describe_model(model.spec, model.processor, run.task, names, precision, plan.channels_last)


def score(run: Run, metrics: dict[str, float]) -> float:
    """The metric that decides, as a number of which more is better; NaN is worst."""
    value = metrics[run.metric]
    upwards = value if run.task.higher_is_better(run.metric) else -value
    return -math.inf if math.isnan(upwards) else upwards


def is_stale(run: Run, progress: Progress) -> bool:
    """Whether early stopping has had enough."""
    return 0 < run.config.eval.patience <= progress.stale


def _count_patience(run: Run, progress: Progress, before: float, value: float) -> None:
    """Count evaluations without a better one, for early stopping and for the plateau schedule."""
    gained = score(run, progress.best.metrics) - before > run.config.eval.min_gain
    progress.stale = 0 if gained else progress.stale + 1
    schedule = run.config.schedule
    if schedule.name == "plateau":
        upwards = run.task.higher_is_better(run.metric)
        falls = (schedule.patience, schedule.gamma, schedule.final_factor)
        progress.plateau = asdict(Plateau(**progress.plateau).after(value, upwards, *falls))
