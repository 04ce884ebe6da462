"""The right to write a run folder, which one process at a time has."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddp_ft.errors import UserError
from ddp_ft.run_folder.files import to_json

# Between two heartbeats, in seconds; and after how long without one a holder on a file system without locks is dead.
BEAT_SECONDS, DEAD_SECONDS = 5.0, 60.0
# How long the processes of an earlier start may take to end, such as those that a batch system is killing.
PATIENCE_SECONDS = 20.0
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Lease:
    """Held from `take` to `release`; the operating system takes it back when the process dies.

    A lock by fcntl.lockf on the file .lease, which forked loader workers do not inherit (those of flock they do) and
    which network file systems pass on. lease.json beside it says who holds it: {"host", "job", "pid", "started",
    "heartbeat" (seconds since 1970), "first_step", "step"}. `step` gives the present step of training.
    """

    def __init__(self, folder: Path, step: Callable[[], int], patience: float | None = None) -> None:
        self.folder = folder
        self.step = step
        self.patience = PATIENCE_SECONDS if patience is None else patience
        self.started = time.time()
        self.first_step = 0
        self._has_begun = False
        self._file: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def take(self) -> None:
        """Wait for an earlier holder to end. UserError that names the holder if it does not."""
        deadline = time.monotonic() + self.patience
        while not self._try():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.folder} is being written by another start: {describe_holder(self.folder)}.",
                    "Wait for it or end it, or choose another folder with --run-dir.",
                )
            time.sleep(0.2)
        self.started = time.time()
        self._write()
        self._thread.start()

    def begin_at(self, step: int) -> None:
        """The step that this start goes on from is known now; until then lease.json tells of none."""
        self.first_step, self._has_begun = step, True
        self._write()

    def release(self) -> None:
        """Let others have it. Nothing if it was never taken."""
        if self._file is None:
            return
        self._ended.set()
        self._thread.join()
        self._write()
        os.close(self._file)  # and with it the lock
        self._file = None

    def _try(self) -> bool:
        # Opened once and closed last: closing any descriptor of the file would give up this process's lock.
        file = os.open(self.folder / ".lease", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED or _is_alive(read_lease(self.folder)):
                os.close(file)
                return False
        self._file = file
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._write()

    def _write(self) -> None:
        step = self.step() if self._has_begun else 0
        content = {
            "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID", ""), "pid": os.getpid(),
            "started": self.started, "heartbeat": time.time(), "first_step": self.first_step, "step": step,
        }  # fmt: skip
        try:  # no fsync: nothing is lost with it
            aside = self.folder / ".lease.json.writing"
            aside.write_text(to_json(content), encoding="utf-8")
            aside.replace(self.folder / "lease.json")
        except OSError:
            pass  # a full disk: the lock is what counts


def read_lease(folder: Path) -> dict[str, Any]:
    """What lease.json says; empty if there is none."""
    try:
        content: dict[str, Any] = json.loads((folder / "lease.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _is_alive(lease: dict[str, Any]) -> bool:
    return time.time() - float(lease.get("heartbeat", 0)) < DEAD_SECONDS


def describe_holder(folder: Path) -> str:
    """Who holds the lease of a run folder, for a message."""
    lease = read_lease(folder)
    if not lease:
        return "its holder has not said who it is"
    job = f", job {lease['job']}" if lease["job"] else ""
    age = time.time() - lease["heartbeat"]
    return f"process {lease['pid']} on {lease['host']}{job}, last heard of {age:.0f} s ago"
