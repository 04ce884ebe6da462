"""The console: a live display on a terminal, plain lines in a log file."""

import logging
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from ddp_ft.contracts import TRAIN
from ddp_ft.errors import columns, printable
from ddp_ft.texts import metric_figure
from ddp_ft.trackers.base import Tracker
from ddp_ft.trackers.console_rows import Place, evaluation_lines, speed_parts, training_line
from ddp_ft.trackers.rank_log import LOGGER

# Seconds between two drawings of the display. The loop draws it: a thread of its own would hold locks while loaders
# fork.
REDRAWN_EVERY = 0.2

# The prefix of warnings, and those of sentences, which a terminal may divide; other lines may be commands to copy.
WARNING = "Warning:"
REMARKS = (WARNING, "Note:")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@dataclass(frozen=True)
class Outlook:
    """What a display shows of the time to come: the best evaluation so far in words, empty if there is none, and when
    the next checkpoint is due: at which step at the latest, and at which time (time.monotonic). `step_seconds` is what
    a step takes, with its share of evaluations and saves; None: too few were timed."""

    best: str
    checkpoint_step: int
    checkpoint_time: float
    step_seconds: float | None = None


class Console(Tracker):
    """The console of every rank but the first: it prints nothing and writes to the rank's log. Base of the others."""

    def print(self, text: str) -> None:
        """Print one or more lines."""
        LOGGER.log(level_of(text), text)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print names and values under a title, aligned."""
        self.print(f"{title}\n{columns(rows)}")

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a heading for each column."""

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Begin to show progress; `look` returns the rest of the display."""

    def shorten(self, total_steps: int) -> None:
        """Expect the end of the phase after so many steps from now on."""

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""

    def doing(self, text: str) -> None:
        """Show what begins now, if it takes a while and is no step; empty: it has ended."""
        if text:
            LOGGER.debug(text)


class Plain(Console):
    """One line for each row; nothing is overwritten, so logs of batch jobs stay readable.

    Texts below `level` are only logged.
    """

    def __init__(self, stream: RichConsole, level: int = logging.INFO) -> None:
        self.stream = stream
        self.level = level
        self.total_steps, self.steps_per_epoch = 0, 1
        self.look: Callable[[], Outlook] | None = None
        self.started_at = 0.0
        self.started_step = 0

    def print(self, text: str) -> None:
        """Print the text; characters that control the terminal or cannot be printed become escapes."""
        text = "\n".join(map(printable, text.split("\n")))
        super().print(text)
        self._print(text, level_of(text))

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print names and values under a title, aligned; on a terminal long values stay beside their names."""
        LOGGER.info(f"{title}\n{columns(rows)}")
        indent = 4 + max(map(len, rows))
        lines = [self._fitted(line, indent) for line in columns({n: printable(v) for n, v in rows.items()}).split("\n")]
        self._print("\n".join([printable(title), *lines]), logging.INFO)

    def _print(self, text: str, level: int) -> None:
        if level >= self.level:
            is_warning = level == logging.WARNING
            text = self._fitted(text, 2) if text.startswith(REMARKS) else text
            style = "yellow" if is_warning else None
            self.stream.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _fitted(self, line: str, indent: int) -> str:
        """On a terminal a line in as many as it needs, divided between words; elsewhere, as it is."""
        if not self.stream.is_terminal:
            return line
        width, later = self.stream.width, " " * indent
        parts = textwrap.wrap(line, width, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
        return "\n".join(parts)

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a heading for each column."""
        headers = [Column(column, no_wrap=True) for column in columns]
        table = Table(*headers, title=title, title_justify="left", box=SIMPLE)
        for row in rows:
            table.add_row(*map(Text, row))
        if self.level <= logging.INFO:
            self.stream.print(table)

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Remember when this start began, for the remaining time."""
        self.look = look
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.started_step, self.started_at = step, time.monotonic()

    def shorten(self, total_steps: int) -> None:
        """Expect the end of the phase after so many steps from now on."""
        self.total_steps = total_steps

    def doing(self, text: str) -> None:
        """Print it with level debug."""
        super().doing(text)
        if text:
            self._print(printable(text), logging.DEBUG)

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Print the row, with the time left after training rows; not the probe's training rows, which are too many."""
        if split != "train" or phase == TRAIN:
            self.print(self.line(split, step, values, phase))

    def line(self, split: str, step: int, values: Mapping[str, float], phase: str) -> str:
        """A row as text."""
        place = Place(step, self.total_steps, self.steps_per_epoch)
        if split == "train":
            return training_line(place, values, clock(self.seconds_left(step, self.total_steps)))
        # The test set is for the best model alone, whatever the step.
        where = "best model" if split == "test" else str(place) if phase == TRAIN else f"after the {phase}"
        return evaluation_lines(split, where, values)

    def seconds_left(self, step: int, until: int) -> float:
        """Seconds until a later step is done, at the pace that was measured, else the mean one since the start."""
        each = self.look().step_seconds if self.look else None
        if each is None:
            each = (time.monotonic() - self.started_at) / max(1, step - self.started_step)
        return each * (until - step)


def level_of(text: str) -> int:
    """The logging level of a text."""
    return logging.WARNING if text.startswith(WARNING) else logging.INFO


def make_console(is_main: bool, level: str = "info") -> Console:
    """A live display on a terminal, plain lines elsewhere, nothing on other ranks than the first."""
    if not is_main:
        return Console()
    stream = RichConsole(markup=False, emoji=False)
    is_live = stream.is_terminal and LEVELS[level] <= logging.INFO
    return (Live if is_live else Plain)(stream, LEVELS[level])


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


_BETWEEN = "  ·  "  # the parts of the line below the bar


class Live(Plain):
    """A bar with the time left of epoch and run; below it the newest row, the best so far, and the next checkpoint."""

    def start(self, step: int, total_steps: int, steps_per_epoch: int, look: Callable[[], Outlook]) -> None:
        """Show the display, in place of that of an earlier phase."""
        self.close()
        super().start(step, total_steps, steps_per_epoch, look)
        self.step = step
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
        """Show the text in place of the row."""
        super().doing(text)
        self.activity = text
        if hasattr(self, "display"):
            self._draw()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Show training rows in the display, and print evaluations as lines that stay."""
        if split != "train":
            super().log(split, step, epoch, values, phase)
            return
        self.row = dict(values)
        if phase == TRAIN:
            LOGGER.info(self.line(split, step, values, phase))

    def close(self) -> None:
        """Remove the display."""
        if hasattr(self, "display"):
            self.display.stop()
            del self.display

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        self.display.update(self._page(), refresh=True)

    def _page(self) -> Group:
        place, present = Place(self.step, self.total_steps, self.steps_per_epoch), min(self.step + 1, self.total_steps)
        bar = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
        epoch_end = min(self.total_steps, (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch)
        times = "  ".join(
            f"{name} {clock(self.seconds_left(self.step, end)) if self.step > self.started_step else '-:--:--'}"
            for name, end in (("epoch", epoch_end), ("run", self.total_steps))
        )
        bar.add_row(
            f"epoch {place.epoch_of(present)}  step {self.step}/{self.total_steps}",
            ProgressBar(total=max(1, self.total_steps), completed=self.step),
            f"left: {times}",
        )
        # What does not fit is left out from the end: half a number would be read as another one.
        parts = self._status()
        while len(parts) > 1 and len(_BETWEEN.join(parts)) > self.stream.width:
            parts.pop()
        return Group(bar, Text(_BETWEEN.join(parts), no_wrap=True, overflow="ellipsis"))

    def _status(self) -> list[str]:
        assert self.look is not None  # set at the start of the display
        look, parts = self.look(), [self.activity] if self.activity else []
        if self.row and not self.activity:
            parts += [f"loss {metric_figure(self.row['loss'])}", *speed_parts(self.row)]
        parts.append(f"best {look.best}" if look.best else "no evaluation yet")
        if self.step > self.started_step:
            by_step = self.seconds_left(self.step, look.checkpoint_step)
            parts.append(f"saves in {clock(min(by_step, look.checkpoint_time - time.monotonic()))}")
        return parts
