"""TensorBoard's event files."""

import shutil
import struct
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ddp_ft.contracts import PROBE, TRAIN
from ddp_ft.errors import one_line
from ddp_ft.trackers.base import Tracker
from ddp_ft.trackers.jsonl import Resumed
from ddp_ft.trackers.services.curves import few_rates, points

# The groups of `curve_name`. TensorBoard sorts them by their names, hence the numbers.
GROUPS = {
    "progress": "1_progress",
    "loss": "2_loss",
    "quality": "3_quality",
    "speed": "4_speed",
    "lr": "5_learning_rates",
    "gradients": "6_gradients",
    "system": "7_system",
}
LOSS, QUALITY, RATES, SPEED, SYSTEM = (GROUPS[each] for each in ("loss", "quality", "lr", "speed", "system"))
# Plugins whose values are made anew at each start, or at the end.
MADE_ANEW = ("scalars", "hparams", "custom_scalars")
WARNINGS = "warnings"
# The page "Custom scalars": curves that share a chart.
LAYOUT = {
    "Run": {
        "loss": ["Multiline", [rf"^{LOSS}/(train|val)$"]],
        "quality": ["Multiline", [rf"^{QUALITY}/val_(accuracy|balanced_accuracy|macro_f1|mAP|r2)$"]],
        "learning rates": ["Multiline", [rf"^{RATES}/"]],
    },
    "Machine": {
        "images or tokens per second": ["Multiline", [rf"^{SPEED}/(images|tokens)_per_second$"]],
        "shares of time and machine": [
            "Multiline",
            [rf"^({SPEED}/(data_wait|padding)_share|{SYSTEM}/.*(load|share))$"],
        ],
    },
}


class TensorBoard(Tracker):
    """Scalars, texts and images of a run, as one continuous page over any number of restarts.

    The event files are written anew at each start, scalars from the kept rows of metrics.jsonl and the rest from the
    old files up to the step from which the run resumes: SummaryWriter's purge_step leaves points of the interrupted
    start in the served curves.
    """

    def __init__(
        self, folder: Path, kept: Sequence[Mapping[str, Any]], texts: Mapping[str, str], resumed: Resumed
    ) -> None:  # fmt: skip
        # An evaluation that is still due draws its images again.
        last = resumed.step - 1 if resumed.evaluation_due else resumed.step
        passed = [event for event in _shown(folder) if _is_passed(event, last, resumed.phase)]
        shown = [event for event in passed if _tag_of(event) not in texts]
        shutil.rmtree(folder, ignore_errors=True)
        _keep_failures_quiet()
        self._writer = SummaryWriter(str(folder))
        self._writer.add_custom_scalars(LAYOUT)
        for title, text in texts.items():
            self._writer.add_text(title, f"```\n{text}\n```")
        # SummaryWriter has no call for encoded events.
        self._events: Any = self._writer._get_file_writer().event_writer  # type: ignore[no-untyped-call]
        for event in shown:
            self._events.add_event(event)
        for row in kept:
            self._scalars(row["split"], row["step"], row, row["time"], row.get("phase", TRAIN))

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """One point on each curve."""
        self._scalars(split, step, {"epoch": epoch, **values}, None, phase)

    def _scalars(self, split: str, step: int, values: Mapping[str, Any], walltime: float | None, phase: str) -> None:
        others = {name: value for name, value in values.items() if not name.startswith("lr/")}
        for curve, value in points({**others, **few_rates(values), "split": split, "phase": phase}):
            self._writer.add_scalar(_tag(curve, phase), value, step, walltime=walltime)

    def warn(self, step: int, text: str) -> None:
        """The text, under its step."""
        self._writer.add_text(WARNINGS, text, step)

    def image(self, tag: str, step: int, png: bytes) -> None:
        """An image, as the bytes of a PNG."""
        width, height = struct.unpack(">II", png[16:24])  # in the first chunk of a PNG (its specification, 11.2.2)
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._events.add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def pr_curve(self, tag: str, step: int, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """A precision-recall curve over all thresholds."""
        self._writer.add_pr_curve(tag, truth, scores, step)

    def histogram(self, tag: str, step: int, values: NDArray[np.float32]) -> None:
        """The distribution of those values that are finite."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(tag, finite, step)

    def graph(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """The module's graph, traced on these inputs; a warning if that fails."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.trace, which SummaryWriter uses, is deprecated
            try:
                self._writer.add_graph(module, tuple(inputs), verbose=False)
            except Exception as error:  # not all models can be traced
                self.warn(0, f"The graph cannot be traced: {one_line(error)}")

    def text(self, tag: str, step: int, text: str) -> None:
        """A text in Markdown."""
        self._writer.add_text(tag, text, step)

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The recipe and its final metrics, for the table of hyperparameters that compares runs."""
        plain = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in settings.items()}
        final = {f"hparam/{name}": value for name, value in metrics.items()}
        self._writer.add_hparams(plain, final, run_name=".")

    def close(self) -> None:
        """Write out what is queued."""
        self._writer.close()


def _keep_failures_quiet() -> None:
    """Let the thread that writes events end without a traceback: the next call raises what ended it."""
    others = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.thread, _AsyncWriterThread):
            others(failure)

    threading.excepthook = hook


def _shown(folder: Path) -> Iterator[Event]:
    """One event for each image, text, curve, histogram or graph in old event files, in order, up to where a crash cut
    a file short."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for data in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(data)
            if event.graph_def:
                yield event
            for value in event.summary.value:
                if not value.HasField("simple_value") and value.metadata.plugin_data.plugin_name not in MADE_ANEW:
                    yield Event(step=event.step, wall_time=event.wall_time, summary=Summary(value=[value]))


def _is_passed(event: Event, step: int, phase: str) -> bool:
    """Whether an event stays: it is of an earlier phase or of the steps up to `step`, and not of the test set."""
    if _tag_of(event).startswith("test/"):
        return False
    is_of_probe = _tag_of(event).startswith(f"{PROBE}/")
    if is_of_probe != (phase == PROBE):
        return is_of_probe
    return int(event.step) <= step


def _tag_of(event: Event) -> str:
    """The event's tag; empty for a graph."""
    if not event.summary.value:
        return ""
    # SummaryWriter's texts have the plugin's name after their tag.
    return str(event.summary.value[0].tag).removesuffix("/text_summary")


def _tag(curve: str, phase: str) -> str:
    """The name of a curve with the number of its group."""
    prefix = "" if phase == TRAIN else f"{phase}/"
    group, _, name = curve.removeprefix(prefix).partition("/")
    return f"{prefix}{GROUPS[group]}/{name}"
