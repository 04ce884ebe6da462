"""What a person sees: a live display on a terminal, plain lines in a log file."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ddp_ft.contracts import TRAIN
from ddp_ft.errors import printable
from ddp_ft.trackers.rank_log import LOGGER

# Seconds between two images of the display. It is drawn by the loop: a thread of its own would hold locks while
# loaders fork.
REDRAWN_EVERY = 0.2

# Names of metrics that begin so are for TensorBoard alone.
NOT_IN_LINES = ("lr/", "save_", "memory_", "host_", "cpu_", "gpu_")
# A text that begins so is a warning.
WARNING = "Warning:"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True)
class Outlook:
    """What a live display says besides the newest row: the best evaluation so far in words, empty if there is none, and
    when the next checkpoint is due: at which step at the latest, and when by the clock (time.monotonic)."""

    best: str
    checkpoint_step: int
    checkpoint_time: float


class Console:
    """Silence, but for this rank's log: the console of every rank but the first, and what the others extend."""

    def say(self, text: str) -> None:
        """Print one or more lines."""
        LOGGER.log(level_of(text), text)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print names and values under a title, aligned."""
        width = max(len(name) for name in rows) + 2
        self.say("\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())]))

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a heading for each column."""

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Begin to show progress; `look` gives what else there is to tell."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def doing(self, text: str) -> None:
        """Something that takes a while and is no step has begun; empty: it has ended."""
        if text:
            LOGGER.debug(text)

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
    """One line for each row; nothing is overwritten, so logs of batch jobs stay readable.

    `level` is what is printed at least; the log has all.
    """

    def __init__(self, stream: RichConsole, level: int = logging.INFO) -> None:
        self.stream = stream
        self.level = level
        self.total_steps = 0
        self.started_at = 0.0
        self.started_step = 0

    def say(self, text: str) -> None:
        """Print the text as it is, but for what would steer the terminal or cannot be printed."""
        text = "\n".join(map(printable, text.split("\n")))
        super().say(text)
        if level_of(text) >= self.level:
            self.stream.print(text, markup=False, highlight=False, soft_wrap=True)

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print it by rich."""
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        if self.level <= logging.INFO:
            self.stream.print(table)

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Remember when this start began, for the remaining time."""
        self.total_steps, self.started_step, self.started_at = total_steps, step, time.monotonic()

    def doing(self, text: str) -> None:
        """Print it where all is printed."""
        super().doing(text)
        if text and self.level <= logging.DEBUG:
            self.stream.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Print the row, with the time left behind training rows; the probe's are too many for its few seconds."""
        if split == "train" and phase != TRAIN:
            return
        self.say(self.line(split, step, epoch, values, phase))

    def line(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str) -> str:
        """A row as text."""
        eta = f"  eta {clock(self.seconds_left(step, self.total_steps))}" if split == "train" else ""
        label = split if phase == TRAIN else f"{phase} {split}"
        return f"{label:<5} step {step}/{self.total_steps}  epoch {epoch:.2f}  {_values(values)}{eta}"

    def seconds_left(self, step: int, until: int) -> float:
        """Until a later step is done, if this goes on as it did since the start, evaluations and all."""
        done = max(1, step - self.started_step)
        return (time.monotonic() - self.started_at) / done * (until - step)


def level_of(text: str) -> int:
    """Whether a text is a warning."""
    return logging.WARNING if text.startswith(WARNING) else logging.INFO


def make_console(is_main: bool, level: str = "info") -> Console:
    """A live display on a terminal, plain lines elsewhere, silence off the main rank."""
    if not is_main:
        return Console()
    stream = RichConsole()
    if stream.is_terminal and LEVELS[level] <= logging.INFO:
        from ddp_ft.trackers.console import Live

        return Live(stream, LEVELS[level])
    return Plain(stream, LEVELS[level])


def _values(values: Mapping[str, float]) -> str:
    shown = {name: value for name, value in values.items() if not name.startswith(NOT_IN_LINES)}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Live(Plain):
    """A bar with the time left of epoch and run; below it the newest row, the best so far, and the next checkpoint."""

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Show the display, in place of that of an earlier phase."""
        self.close()
        super().start(step, total_steps, steps_per_epoch, look)
        self.step, self.steps_per_epoch, self.look = step, steps_per_epoch, look
        self.row: dict[str, float] = {}
        self.activity = ""
        self.drawn_at = 0.0
        self.display = RichLive(self._page(), console=self.stream, auto_refresh=False, transient=True)
        self.display.start(refresh=True)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.step, self.activity = step, ""
        if time.monotonic() - self.drawn_at >= REDRAWN_EVERY:
            self._draw()

    def doing(self, text: str) -> None:
        """Show it in place of the row."""
        super().doing(text)
        self.activity = text
        if hasattr(self, "display"):
            self._draw()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Training rows in the display, evaluations as lines that stay."""
        if split != "train":
            super().log(split, step, epoch, values, phase)
            return
        self.row = dict(values)
        if phase == TRAIN:
            LOGGER.info(self.line(split, step, epoch, values, phase))

    def close(self) -> None:
        """Take the display away."""
        if hasattr(self, "display"):
            self.display.stop()
            del self.display

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        self.display.update(self._page(), refresh=True)

    def _page(self) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        epoch_end = min(self.total_steps, (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch)
        times = "  ".join(
            f"{name} {clock(self.seconds_left(self.step, end)) if self.step > self.started_step else '-:--:--'}"
            for name, end in (("epoch", epoch_end), ("run", self.total_steps))
        )
        bar.add_row(
            f"step {self.step}/{self.total_steps}",
            ProgressBar(total=max(1, self.total_steps), completed=self.step),
            f"left: {times}",
        )
        return Group(bar, Text(self._status(), no_wrap=True, overflow="ellipsis"))

    def _status(self) -> str:
        look, parts = self.look(), [self.activity] if self.activity else []
        if self.row and not self.activity:
            parts.append(f"loss {self.row['loss']:.4g}")
            if self.row.get("images_per_second"):  # not yet in the warm-up, and not in the probe
                parts.append(f"{self.row['images_per_second']:.1f} images/s")
                parts.append(f"waits {self.row['data_wait_share']:.0%}")
        parts.append(f"best {look.best}" if look.best else "no evaluation yet")
        by_step = self.seconds_left(self.step, look.checkpoint_step)
        due = min(by_step, look.checkpoint_time - time.monotonic()) if self.step > self.started_step else None
        parts += [] if due is None else [f"checkpoint in {clock(due)}"]
        return "  ·  ".join(parts)
