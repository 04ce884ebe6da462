"""Where metrics go. A new tracker is one new file and one line in `make_trackers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_ft.contracts import TRAIN, Tracker
from ddp_ft.trackers.console import Console, make_console
from ddp_ft.trackers.jsonl import JsonLines, read_rows

__all__ = ["Console", "FanOut", "make_console", "make_trackers", "read_rows"]


class FanOut:
    """Hands each row to all its trackers; with none it is the null tracker of the other ranks."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = trackers

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Pass one row on."""
        for tracker in self.trackers:
            tracker.log(split, step, epoch, values, phase)

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Tell all that the run has ended, with its recipe and the metrics of its best model."""
        for tracker in self.trackers:
            tracker.finish(settings, metrics)

    def close(self) -> None:
        """Close all."""
        for tracker in self.trackers:
            tracker.close()


def make_trackers(
    run_dir: Path,
    is_main: bool,
    console: Console,
    resume_step: int,
    texts: Mapping[str, str],
    phase: str = TRAIN,
) -> FanOut:
    """Trackers of a run that goes on at that step of that phase; what was logged behind it before is cut."""
    if not is_main:
        return FanOut()
    from ddp_ft.trackers.tensorboard import TensorBoard

    rows = JsonLines(run_dir / "metrics.jsonl", resume_step, phase)
    return FanOut([rows, TensorBoard(run_dir / "tensorboard", rows.kept, texts), console])
