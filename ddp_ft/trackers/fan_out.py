"""Where metrics go. A new tracker is one new file, and one line in `make_trackers` or in `services.registry`."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, read_config_file, to_flat
from ddp_ft.contracts import TRAIN, Tracker
from ddp_ft.trackers.console import Console
from ddp_ft.trackers.figure_process import Studio
from ddp_ft.trackers.jsonl import JsonLines, Resumed
from ddp_ft.trackers.services.background import Background
from ddp_ft.trackers.services.base import Row, Start
from ddp_ft.trackers.services.registry import service_names

# How long the end of a run waits for images that are still being drawn, in seconds; a run that was told to stop has
# 10 s in all.
PATIENCE, PATIENCE_OF_A_STOP = 60.0, 3.0


class FanOut:
    """Hands each row to all its trackers; with none it is the null tracker of the other ranks.

    A tracker that fails never stops training: it is left out from then on.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)
        self._studio = Studio()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Pass one row on, and the images that are drawn by now."""
        self._tell_all("log", split, step, epoch, values, phase)
        self._show_images()

    def warn(self, step: int, text: str) -> None:
        """Pass a warning on."""
        self._tell_all("warn", step, text)

    def sync(self) -> None:
        """Make durable what was logged. Called from another thread than the rest; raises OSError, of a full disk."""
        for tracker in list(self.trackers):
            tracker.sync()

    def draw(self, tag: str, step: int, draw: Callable[..., bytes], *arguments: Any) -> None:
        """Have an image drawn by `draw(*arguments)`, in another process, and pass it on once it is there.

        A newer one of that tag takes the place of one that has not been begun.
        """
        if self.trackers:
            with harmless(f"{tag} is not drawn"):
                self._studio.order(tag, step, draw, *arguments)

    def _show_images(self, patience: float = 0.0) -> None:
        with harmless("images are not shown"):
            for tag, step, png in self._studio.finished(patience):
                self._tell_all("image", tag, step, png)

    def pr_curve(self, tag: str, step: int, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """Pass on what a precision-recall curve is drawn of, N each, to those that draw it."""
        self._tell_all("pr_curve", tag, step, truth, scores)

    def histogram(self, tag: str, step: int, values: NDArray[np.float32]) -> None:
        """Pass on values to those that show how they are spread."""
        self._tell_all("histogram", tag, step, values)

    def graph(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Pass a model on, with what it is called with, to those that show its graph."""
        self._tell_all("graph", module, inputs)

    def text(self, tag: str, step: int, text: str) -> None:
        """Pass on a text in Markdown to those that show texts."""
        self._tell_all("text", tag, step, text)

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Tell all that the run has ended, with its recipe and the metrics of its best model."""
        self._tell_all("finish", settings, metrics)

    def close(self, patience: float = PATIENCE) -> None:
        """Close all, once what is to be shown is drawn, or after so many seconds."""
        self._show_images(patience)
        self._studio.close()
        self._tell_all("hang_up")
        self._tell_all("close")

    def _tell_all(self, method: str, *arguments: Any) -> None:
        for tracker in list(self.trackers):
            if not hasattr(tracker, method):  # not all show more than rows
                continue
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # its library's, of any kind; training does not depend on it
                self.trackers.remove(tracker)
                name = type(tracker).__name__
                print(f"Warning: {name} failed and is left out from now on: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def harmless(loss: str) -> Iterator[None]:
    """Around what training does not depend on: whatever goes wrong is one warning, which says what is lost by it."""
    try:
        yield
    except Exception as error:  # full disks, missing fonts, values that nobody thought of
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"Warning: {loss}: {reason}", file=sys.stderr)  # noqa: T201


def make_trackers(run_dir: Path, console: Console, resumed: Resumed, services: str | None = None) -> FanOut:
    """The trackers of rank 0 of a run that goes on there; what was logged after that before is cut.

    `services` are names of `services.registry`, with commas between; None: none. They and TensorBoard are told the
    recipe, which stands in the folder's config.yaml.
    """
    from ddp_ft.trackers.tensorboard import TensorBoard

    rows, recipe = JsonLines(run_dir / "metrics.jsonl", resumed), run_dir / "config.yaml"
    texts = {"recipe": recipe.read_text(encoding="utf-8")} if recipe.exists() else {}
    beside = [Background(name, _start(run_dir, rows.kept), console.say) for name in service_names(services)]
    events = TensorBoard(run_dir / "tensorboard", rows.kept, texts, resumed)
    return FanOut([rows, events, console, *beside])


def _start(run_dir: Path, kept: Sequence[Row]) -> Start:
    config = make_config(read_config_file(run_dir / "config.yaml"))
    return Start(run_dir, to_flat(config, [RECIPE]), to_flat(config, [LENGTH]), kept)
