"""The display on a terminal: two lines that change, under those that stay."""

import time
from collections.abc import Callable, Mapping

from rich.console import Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ddp_ft.contracts import TRAIN
from ddp_ft.trackers.console import Outlook, Plain, clock
from ddp_ft.trackers.rank_log import LOGGER

# Seconds between two pictures of the display. It is drawn by the loop: a thread of its own would hold locks while
# loaders fork.
REDRAWN_EVERY = 0.2


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
