"""A long scan reports where it is, and ends at Ctrl-C."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ddp_ft.distributed.stop_request import is_interrupted
from ddp_ft.errors import printable

# Seconds after which a scan reports for the first time, and then again.
FIRST_REPORT, NEXT_REPORT = 3.0, 10.0


@dataclass
class ScanWatch:
    """Looks on while a folder and all below it are read, in several threads."""

    root: Path
    entries: int = 0
    is_over: bool = False
    _due: float = field(default_factory=lambda: time.monotonic() + FIRST_REPORT)

    def at(self, folder: str, entries: int) -> None:
        """Count what is in one more folder. Raises KeyboardInterrupt if the scan has to end."""
        if self.is_over or is_interrupted():
            raise KeyboardInterrupt
        self.entries += entries
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + NEXT_REPORT
            text = f"Reading {self.root}: {self.entries:,} files and folders so far, now in {folder}. Ctrl-C ends it."
            print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
