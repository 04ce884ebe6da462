"""metrics.jsonl: one JSON object a line."""

import errno
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ddp_ft.contracts import TRAIN
from ddp_ft.files import sync_opened, write_text
from ddp_ft.run_folder.contents import Row, read_rows
from ddp_ft.trackers.base import Tracker


class Resumed(NamedTuple):
    """Where a start continues: after `step` steps of a phase, with that step's evaluation if it is still due."""

    step: int = 0
    phase: str = TRAIN
    evaluation_due: bool = False


class JsonLines(Tracker):
    """Appends rows {"step", "epoch", "split", metric: value..., "time": seconds since 1970}.

    Rows of the probe phase have "phase": "probe" and count their own steps. On a restart, rows after the step from
    which it resumes are removed first: those steps will run again. `kept` holds the rest.
    """

    def __init__(self, file: Path, resumed: Resumed) -> None:
        rows = read_rows(file)
        self.kept = [row for row in rows if _is_passed(row, *resumed)]
        write_text(file, "".join(_line(row) for row in self.kept), durable=False)
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND)
        self._written = os.fstat(self._file).st_size
        self._waiting = b""
        self._lock = threading.Lock()  # `sync` comes from the thread that writes checkpoints

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Append one row. On a full disk it waits in memory for the next one."""
        row: Row = {"step": step, "epoch": round(epoch, 4), "split": split}
        row |= {} if phase == TRAIN else {"phase": phase}
        with self._lock, suppress(OSError):
            self._waiting += _line({**row, **values, "time": round(time.time(), 3)}).encode()
            self._write()

    def _write(self) -> None:
        """Write the waiting rows, whole lines or nothing. Raises OSError."""
        try:
            written = os.write(self._file, self._waiting)
            if written < len(self._waiting):  # the disk is full now
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._written)
            raise
        self._written, self._waiting = self._written + written, b""

    def sync(self) -> None:
        """Make all rows durable. Raises OSError if that fails."""
        with self._lock:
            if self._waiting:
                self._write()
            sync_opened(self._file)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self.sync()
        os.close(self._file)


def _is_passed(row: Row, step: int, phase: str, evaluation_due: bool) -> bool:
    """Whether a row stays: it is of an earlier phase or of the steps up to `step`; of this step itself, evaluations
    that will run again go."""
    if row.get("phase", TRAIN) != phase:
        return phase == TRAIN
    runs_again = row["split"] == "test" or (row["split"] == "val" and evaluation_due)
    return bool(row["step"] < step or (row["step"] == step and not runs_again))


def _line(row: Row) -> str:
    # JSON has no NaN and no infinity; strict readers would refuse the whole file.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
