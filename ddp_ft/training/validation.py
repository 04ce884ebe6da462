"""Evaluation, and what follows from it: which model is the best so far, whether training still gains, the test."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

from ddp_ft.contracts import TRAIN, Evaluation
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.run_folder.background_writer import BEST, copied
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.training.best_model import write_best
from ddp_ft.training.choice import is_chosen, ranked
from ddp_ft.training.phase import Phase
from ddp_ft.training.progress import Best, Progress
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.schedule import Plateau
from ddp_ft.training.state import EMA, RAW, TrainState


def validate(run: Run, state: TrainState, phase: Phase, recorder: Recorder) -> bool:
    """Evaluate the weights, and their moving average if there is one; keep the best so far in best/. Return False if
    all ranks were asked to stop meanwhile: then nothing has changed, and the evaluation is still due."""
    recorder.evaluating()
    try:
        results = _measure_all(run, state, phase)
    except StopAgreed:
        return False
    progress = state.progress
    before = progress.top
    state.score = max(run.score(found.metrics) for found in results.values())
    winners = [found for kind, found in results.items() if _keep_if_best(run, state, phase, kind, found)]
    progress.evaluation_due = False
    row = _row(results)
    recorder.evaluation(row, winners[-1] if winners else None)
    if phase.name == TRAIN:
        _count_patience(run, progress, before, row[run.metric])
        if is_stale(run, progress) and progress.step < phase.last_step(progress):
            recorder.print(_early_stop(run, progress, phase.last_step(progress)))
    return True


def _measure_all(run: Run, state: TrainState, phase: Phase) -> dict[str, Evaluation]:
    """Evaluate the weights ("raw"), their moving average ("ema"), or both."""
    results = {}
    for kind in run.evaluated(phase.name):
        with state.as_evaluated(kind, run.world):
            results[kind] = phase.measure()
    return results


def _row(results: Mapping[str, Evaluation]) -> dict[str, float]:
    """The metrics by name; those of an average that is evaluated beside the weights have a prefix."""
    prefixes = {RAW: "", EMA: "ema_"} if len(results) > 1 else dict.fromkeys(results, "")
    return {
        f"{prefixes[kind]}{name}": value for kind, found in results.items() for name, value in found.metrics.items()
    }


def _keep_if_best(run: Run, state: TrainState, phase: Phase, kind: str, evaluation: Evaluation) -> bool:
    """Begin to write the model to best/ if it takes the place of the one there; return whether it does."""
    progress, metrics = state.progress, evaluation.metrics
    if not is_chosen(run, metrics, progress.top):
        return False
    if not progress.top or run.score(metrics) > run.score(progress.top):
        progress.top = metrics
    if phase.name == TRAIN:
        state.score = ranked(run, run.score(metrics), progress.step)
    progress.best = Best(progress.step, phase.epoch(progress.step), phase.name, kind, metrics)
    with state.as_evaluated(kind, run.world):
        if run.world.is_main:
            keep_model = partial(write_best, run, copied(state.module.state_dict()))
            keep_outputs = partial(save_evaluation, run.folder.path, "val", evaluation)
            run.writer.submit(BEST, keep_outputs, keep_model)
    return True


def is_stale(run: Run, progress: Progress) -> bool:
    """Return whether early stopping ends the run."""
    return 0 < run.config.eval.patience <= progress.stale


def _early_stop(run: Run, progress: Progress, last: int) -> str:
    """The line that reports early stopping."""
    no_better = f"{progress.stale} evaluations in a row without a better {run.metric} (--patience)"
    return f"Early stop at step {progress.step} of {last}: {no_better}. Best: {progress.best}."


def _count_patience(run: Run, progress: Progress, before: Mapping[str, float], value: float) -> None:
    """Count evaluations that were no better, for early stopping and for the plateau schedule. `before` has the metrics
    of the best one before; empty: there was none."""
    least, top, best = run.config.eval.min_gain, run.score(progress.top), run.score(before) if before else None
    gained = best is None or top.quality - best.quality > least or (least == 0 and top > best)
    progress.stale = 0 if gained else progress.stale + 1
    schedule = run.config.schedule
    if schedule.name == "plateau":
        upwards = run.task.higher_is_better(run.metric)
        falls = (schedule.patience, schedule.gamma, schedule.final_factor)
        progress.plateau = asdict(Plateau(**progress.plateau).after(value, upwards, *falls))
