"""The trackers of a run: where its metrics go, from the step on at which it continues."""

from ddp_ft.trackers.console import Console
from ddp_ft.trackers.fan_out import FanOut, make_trackers
from ddp_ft.trackers.jsonl import Resumed
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState


def open_trackers(run: Run, state: TrainState, console: Console) -> FanOut:
    """The run's trackers; off rank 0 there are none."""
    progress = state.progress
    if not run.world.is_main:
        return FanOut()
    resumed = Resumed(progress.step, progress.phase, progress.evaluation_due)
    return make_trackers(run.folder.path, console, resumed, run.config.log.trackers)
