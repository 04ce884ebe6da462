"""The test of a run's best model, once at its end."""

from safetensors.torch import load_file

from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.training.measure import measure
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def test_best(run: Run, state: TrainState, recorder: Recorder) -> dict[str, float]:
    """The metrics of best/ on the test set; its weights are in the module then. Collective; may raise StopAgreed."""
    assert run.splits.test is not None
    restore_weights(state.module, load_file(run.folder.best / "model.safetensors"))
    evaluation = measure(run, run.splits.test)
    if run.world.is_main:
        save_evaluation(run.folder.path, "test", evaluation)
    recorder.test(evaluation)
    return evaluation.metrics
