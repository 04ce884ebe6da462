"""The best model of a run, in best/: written, tested, and brought back if it was damaged."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddp_ft.contracts import NO_VIEWS
from ddp_ft.data.image.views import PASSES
from ddp_ft.run_folder.checkpoints import checkpoint_weights, damage_of, load_ema
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.model_folder import (
    VAL_VIEWS,
    is_sound,
    save_model_folder,
)
from ddp_ft.texts import metric_figure
from ddp_ft.training.best_contents import contents_of, restore_best
from ddp_ft.training.data_phase import measure
from ddp_ft.training.progress import Best
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import EMA, TrainState


def write_best(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Replace best/ by a model with these weights; on rank 0."""
    save_model_folder(run.folder.best, *contents_of(run, weights))


def mend_best(run: Run, state: TrainState) -> str:
    """Bring best/ back if it was damaged since: from its checkpoint if that is kept, else by the next evaluation, whose
    model counts as the best. Return a line that reports it; empty if best/ is whole. The same on every rank."""
    best = state.progress.best
    if not best.metrics or not run.world.from_main(lambda: not is_sound(run.folder.best)):
        return ""
    folder = run.checkpoints.folder_of(best.step, best.phase)
    if run.world.from_main(lambda: _bring_back(run, folder, best.weights)):
        return f"{run.folder.best} was damaged; it is brought back from {folder.name}."
    state.progress.best, state.progress.top, state.progress.evaluation_due = Best(), {}, True
    return f"{run.folder.best} is damaged, and its checkpoint is gone: the best model from here on takes its place."


def _bring_back(run: Run, checkpoint: Path, kind: str) -> bool:
    """Write best/ from a checkpoint; return whether that was possible."""
    if damage_of(checkpoint):
        return False
    weights = load_ema(checkpoint) if kind == EMA else checkpoint_weights(checkpoint)
    if weights is not None:
        base = {name: each for name, each in run.model.module.state_dict().items() if name in run.model.base}
        write_best(run, {**base, **weights})
    return weights is not None


def test_best(run: Run, state: TrainState, recorder: Recorder) -> dict[str, float]:
    """Return the metrics of best/ on the test set, with the run's views of each image; its weights stay in the module.
    Collective; may raise StopAgreed."""
    assert run.splits.test is not None
    restore_best(run, state.module)
    recorder.testing()
    evaluation = measure(run, run.splits.test, run.config.eval.tta)
    if run.world.is_main:
        save_evaluation(run.folder.path, "test", evaluation)
    recorder.test(evaluation)
    return evaluation.metrics


def view_best(run: Run, state: TrainState, recorder: Recorder) -> dict[str, dict[str, float]]:
    """Return, by its name in summary.json, the metrics of best/ on the validation set by the mean over the run's views
    of each image, to be compared with those of the images alone; nothing without views. Its weights stay in the module.
    Collective; may raise StopAgreed."""
    if run.config.eval.tta == NO_VIEWS:
        return {}
    restore_best(run, state.module)
    recorder.evaluating()
    metrics = measure(run, run.splits.val, run.config.eval.tta).metrics
    recorder.print(f"{run.config.eval.tta} (eval.tta): {_gain(run, state.progress.best.metrics, metrics)}")
    return {VAL_VIEWS: metrics}


def _gain(run: Run, alone: Mapping[str, float], viewed: Mapping[str, float]) -> str:
    figures = [metric_figure(metrics[run.metric]) for metrics in (viewed, alone)]
    passes = f"{PASSES[run.config.eval.tta]} passes of each image"
    text = f"val {run.metric} {figures[0]} by {passes}, which test, evaluate and predict take; {figures[1]} by one."
    worse = run.score(viewed).quality < run.score(alone).quality
    return f"{text} It is worse here: --tta none takes one." if worse else text
