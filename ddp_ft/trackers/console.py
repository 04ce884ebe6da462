"""What a person sees: a bar on a terminal, plain lines in a log file."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ddp_ft.contracts import TRAIN
from ddp_ft.errors import printable

# What begins so is for TensorBoard alone.
NOT_IN_LINES = ("lr/", "save_", "memory_", "host_", "cpu_", "gpu_")


class Console:
    """Silence: the console of every rank but the first, and what the others extend."""

    def say(self, text: str) -> None:
        """Print one or more lines."""

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print names and values under a title."""

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a heading for each column."""

    def start(self, step: int, total_steps: int) -> None:
        """Begin to show progress."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Show one row of metrics."""

    def warn(self, step: int, text: str) -> None:
        """Nothing: every rank has printed it."""

    def sync(self) -> None:
        """Nothing to make durable."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Nothing: the run says its own farewell."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Plain(Console):
    """One line for each row; nothing is overwritten, so logs of batch jobs stay readable."""

    def __init__(self, stream: RichConsole) -> None:
        self.stream = stream
        self.total_steps = 0
        self.started_at = 0.0
        self.started_step = 0

    def say(self, text: str) -> None:
        """Print the text as it is, but for what would steer the terminal or cannot be printed."""
        text = "\n".join(map(printable, text.split("\n")))
        self.stream.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print aligned 'name  value' lines."""
        width = max(len(name) for name in rows) + 2
        self.say("\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())]))

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print it by rich."""
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.stream.print(table)

    def start(self, step: int, total_steps: int) -> None:
        """Remember when this start began, for the remaining time."""
        self.total_steps, self.started_step, self.started_at = total_steps, step, time.monotonic()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Print the row, with the time left behind training rows; the probe's are too many for its few seconds."""
        if split == "train" and phase != TRAIN:
            return
        eta = f"  eta {_clock(self._seconds_left(step))}" if split == "train" else ""
        label = split if phase == TRAIN else f"{phase} {split}"
        self.say(f"{label:<5} step {step}/{self.total_steps}  epoch {epoch:.2f}  {_values(values)}{eta}")

    def _seconds_left(self, step: int) -> float:
        done = max(1, step - self.started_step)
        return (time.monotonic() - self.started_at) / done * (self.total_steps - step)


class Live(Plain):
    """A bar with the remaining time under the lines."""

    def start(self, step: int, total_steps: int) -> None:
        """Show the bar, in place of that of an earlier phase."""
        self.close()
        super().start(step, total_steps)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("eta"),
            TimeRemainingColumn(), console=self.stream, transient=True,
        )  # fmt: skip
        self.bar = self.progress.add_task("training", total=total_steps, completed=step)
        self.progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.progress.update(self.bar, completed=step)

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Training rows beside the bar, evaluations as lines that stay."""
        if split == "train":
            speed = values.get("images_per_second", 0.0)
            self.progress.update(self.bar, description=f"loss {values['loss']:.4f}  {speed:.0f} images/s")
        else:
            super().log(split, step, epoch, values, phase)

    def close(self) -> None:
        """Take the bar away."""
        if hasattr(self, "progress"):
            self.progress.stop()


def make_console(is_main: bool) -> Console:
    """A bar on a terminal, plain lines elsewhere, silence off the main rank."""
    if not is_main:
        return Console()
    stream = RichConsole()
    return Live(stream) if stream.is_terminal else Plain(stream)


def _values(values: Mapping[str, float]) -> str:
    shown = {name: value for name, value in values.items() if not name.startswith(NOT_IN_LINES)}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
