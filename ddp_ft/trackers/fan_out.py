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
from ddp_ft.contracts import TRAIN
from ddp_ft.errors import typed_line
from ddp_ft.trackers.base import Tracker
from ddp_ft.trackers.console import Console
from ddp_ft.trackers.figure_process import Studio
from ddp_ft.trackers.jsonl import JsonLines, Resumed
from ddp_ft.trackers.services.background import Background
from ddp_ft.trackers.services.base import Row, Start
from ddp_ft.trackers.services.registry import service_names

# Seconds that the end of a run waits for images that are still being drawn; a run that has to stop has 10 s in all.
PATIENCE, PATIENCE_OF_A_STOP = 60.0, 3.0


class FanOut(Tracker):
    """Passes each row to all its trackers; the tracker of the other ranks has none.

    A tracker that fails never stops training: it is left out from then on.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = list(trackers)
        self._studio = Studio()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Pass a row on, and the images that are drawn by now."""
        self._pass_on("log", split, step, epoch, values, phase)
        self._pass_images_on()

    def warn(self, step: int, text: str) -> None:
        """Pass a warning on."""
        self._pass_on("warn", step, text)

    def sync(self) -> None:
        """Make durable what was logged. Called from another thread than the rest; raises OSError, of a full disk."""
        for tracker in list(self.trackers):
            tracker.sync()

    def draw(self, tag: str, step: int, draw: Callable[..., bytes], *arguments: Any) -> None:
        """Have `draw(*arguments)` make an image in another process, and pass it on when it is there.

        A newer image of that tag replaces one that has not been begun.
        """
        if self.trackers:
            with harmless(f"{tag} is not drawn"):
                self._studio.order(tag, step, draw, *arguments)

    def _pass_images_on(self, patience: float = 0.0) -> None:
        with harmless("images are not shown"):
            for tag, step, png in self._studio.finished(patience):
                self.image(tag, step, png)

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Pass an image on."""
        self._pass_on("image", tag, step, png)

    def pr_curve(self, tag: str, step: int, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """Pass a precision-recall curve on."""
        self._pass_on("pr_curve", tag, step, truth, scores)

    def histogram(self, tag: str, step: int, values: NDArray[np.float32]) -> None:
        """Pass the values of a histogram on."""
        self._pass_on("histogram", tag, step, values)

    def graph(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Pass a model on, with its inputs."""
        self._pass_on("graph", module, inputs)

    def text(self, tag: str, step: int, text: str) -> None:
        """Pass a text on."""
        self._pass_on("text", tag, step, text)

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Pass the end of the run on."""
        self._pass_on("finish", settings, metrics)

    def close(self, patience: float = PATIENCE) -> None:
        """Close all trackers after the last images are drawn, or after `patience` seconds."""
        self._pass_images_on(patience)
        self._studio.close()
        self._pass_on("hang_up")
        self._pass_on("close")

    def _pass_on(self, method: str, *arguments: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # its library's, of any kind; training does not depend on it
                self.trackers.remove(tracker)
                name = type(tracker).__name__
                print(f"Warning: {name} failed and is left out from now on: {error}", file=sys.stderr)  # noqa: T201


@contextmanager
def harmless(loss: str) -> Iterator[None]:
    """Turn any exception inside the block into one warning that names what was lost."""
    try:
        yield
    except Exception as error:  # full disks, missing fonts, unexpected values
        print(f"Warning: {loss}: {typed_line(error)}", file=sys.stderr)  # noqa: T201


def make_trackers(run_dir: Path, console: Console, resumed: Resumed, services: str | None = None) -> FanOut:
    """The trackers of rank 0, for a run that begins at `resumed`; later rows and images of earlier starts are removed.

    `services` are names of `services.registry`, with commas between; None: none. They and TensorBoard record the recipe
    from the folder's config.yaml.
    """
    from ddp_ft.trackers.tensorboard import TensorBoard

    rows, recipe = JsonLines(run_dir / "metrics.jsonl", resumed), run_dir / "config.yaml"
    texts = {"recipe": recipe.read_text(encoding="utf-8")} if recipe.exists() else {}
    beside: list[Tracker] = []
    for name in service_names(services):
        with harmless(f"{name} gets no rows"):
            beside.append(Background(name, _start(run_dir, rows.kept), console.print))
    pages: list[Tracker] = []
    with harmless("TensorBoard gets no rows"):
        pages.append(TensorBoard(run_dir / "tensorboard", rows.kept, texts, resumed))
    return FanOut([rows, *pages, console, *beside])


def _start(run_dir: Path, kept: Sequence[Row]) -> Start:
    config = make_config(read_config_file(run_dir / "config.yaml"))
    return Start(run_dir, to_flat(config, [RECIPE]), to_flat(config, [LENGTH]), kept)
