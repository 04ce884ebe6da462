"""Where metrics go. A new tracker is one new file and one line in `make_trackers`, or in `ddp_ft.services`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddp_ft.config import LENGTH, RECIPE, make_config, read_config_file, to_flat
from ddp_ft.contracts import TRAIN, Tracker
from ddp_ft.services import Row, Start
from ddp_ft.trackers.background import Background
from ddp_ft.trackers.console import Console, make_console
from ddp_ft.trackers.jsonl import JsonLines, read_rows

__all__ = ["Console", "FanOut", "make_console", "make_trackers", "read_rows"]


class FanOut:
    """Hands each row to all its trackers; with none it is the null tracker of the other ranks.

    A tracker that fails never stops training: it is left out from then on.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Pass one row on."""
        self._tell_all("log", split, step, epoch, values, phase)

    def warn(self, step: int, text: str) -> None:
        """Pass a warning on."""
        self._tell_all("warn", step, text)

    def sync(self) -> None:
        """Make durable what was logged. Called from another thread than the rest; raises OSError, of a full disk."""
        for tracker in list(self.trackers):
            tracker.sync()

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Tell all that the run has ended, with its recipe and the metrics of its best model."""
        self._tell_all("finish", settings, metrics)

    def close(self) -> None:
        """Close all."""
        self._tell_all("close")

    def _tell_all(self, method: str, *arguments: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # its library's, of any kind; training does not depend on it
                self.trackers.remove(tracker)
                name = type(tracker).__name__
                print(f"Warning: {name} failed and is left out from now on: {error}", file=sys.stderr)  # noqa: T201


def make_trackers(
    run_dir: Path,
    is_main: bool,
    console: Console,
    resume_step: int,
    texts: Mapping[str, str],
    phase: str = TRAIN,
    evaluation_due: bool = False,
    services: Sequence[str] = (),
) -> FanOut:
    """Trackers of a run that goes on at that step of that phase; what was logged behind it before is cut.

    `services` are names of `ddp_ft.services`; what they are told of the recipe stands in the folder's config.yaml.
    """
    if not is_main:
        return FanOut()
    from ddp_ft.trackers.tensorboard import TensorBoard

    rows = JsonLines(run_dir / "metrics.jsonl", resume_step, phase, evaluation_due)
    beside = [Background(name, _start(run_dir, rows.kept), console.say) for name in services]
    return FanOut([rows, TensorBoard(run_dir / "tensorboard", rows.kept, texts), console, *beside])


def _start(run_dir: Path, kept: Sequence[Row]) -> Start:
    config = make_config(read_config_file(run_dir / "config.yaml"))
    return Start(run_dir, to_flat(config, [RECIPE]), to_flat(config, [LENGTH]), kept)
