"""The best model of a run, in best/: written, tested, and brought back if it was damaged."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddp_ft.run_folder.checkpoints import checkpoint_weights, damage_of, load_ema
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.model_folder import describe_model, is_sound, read_weights, restore_weights, save_model_folder
from ddp_ft.training.data_phase import measure
from ddp_ft.training.progress import Best
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import EMA, TrainState


def write_best(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Replace best/ by a model with these weights; on rank 0."""
    model, plan = run.model, run.plan
    names = run.splits.schema.names
    description = describe_model(model.spec, model.processor, run.task, names, plan.precision, plan.channels_last)
    save_model_folder(run.folder.best, weights, description)


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
        write_best(run, weights)
    return weights is not None


def test_best(run: Run, state: TrainState, recorder: Recorder) -> dict[str, float]:
    """Return the metrics of best/ on the test set; its weights stay in the module. Collective; may raise StopAgreed."""
    assert run.splits.test is not None
    restore_weights(state.module, read_weights(run.folder.best / "model.safetensors"))
    recorder.testing()
    evaluation = measure(run, run.splits.test)
    if run.world.is_main:
        save_evaluation(run.folder.path, "test", evaluation)
    recorder.test(evaluation)
    return evaluation.metrics
