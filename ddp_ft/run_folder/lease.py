"""The right to write a run folder, which one process at a time has."""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ddp_ft.errors import UserError
from ddp_ft.files import to_json, write_text
from ddp_ft.run_folder.contents import Damaged, as_dataclass, damaged, read_content

# Between two heartbeats, in seconds; and after how long without one a holder on a file system without locks is dead.
BEAT_SECONDS, DEAD_SECONDS = 5.0, 60.0
# How long the processes of an earlier start may take to end, such as those that a batch system is killing.
PATIENCE_SECONDS = 20.0
# How a lock says that another process holds it; whatever else it says, the file system has no locks.
_HELD = (errno.EACCES, errno.EAGAIN)
_LOCK, _FILE = ".lease", "lease.json"


@dataclass(frozen=True)
class Holder:
    """lease.json: who holds, or held, the run folder. Times are in seconds since 1970; `job` is Slurm's, or empty.

    `released`: it has ended by itself. `first_step` is the step that this start resumed from, `step` the present one,
    both of training.
    """

    host: str = ""
    job: str = ""
    pid: int = 0
    started: float = 0.0
    heartbeat: float = 0.0
    first_step: int = 0
    step: int = 0
    released: bool = False
    failure: str = ""  # why this start ended, if that was a mistake of the user

    @property
    def is_alive(self) -> bool:
        """Whether it has sent a heartbeat lately, and has not ended since."""
        return not self.released and time.time() - float(self.heartbeat) < DEAD_SECONDS

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, last heard of {time.time() - self.heartbeat:.0f} s ago"


class Lease:
    """Held from `take` to `release`; the operating system takes it back when the process dies.

    A lock by fcntl.lockf on the file .lease, which forked loader workers do not inherit (those of flock they do) and
    which network file systems pass on. lease.json beside it is a `Holder`. `step` returns the present step of training.
    """

    def __init__(self, folder: Path, step: Callable[[], int], patience: float | None = None) -> None:
        self.folder = folder
        self.step = step
        self.patience = PATIENCE_SECONDS if patience is None else patience
        self.started = 0.0
        self.first_step = 0
        self.failure = ""
        self._has_begun = False
        self._file: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def take(self) -> None:
        """Wait for an earlier holder to end. UserError that names the holder if it does not."""
        deadline = time.monotonic() + self.patience
        while not self._try():
            if time.monotonic() > deadline:
                holder = read_lease(self.folder) or "its process is not known"
                raise UserError(
                    f"{self.folder} is being written by another start: {holder}.",
                    "Wait for it or end it, or choose another folder with --run-dir.",
                )
            time.sleep(0.2)
        self.started = time.time()
        self._write()
        self._thread.start()

    def begin_at(self, step: int) -> None:
        """Note the step that this start resumes from; until then lease.json has 0."""
        self.first_step, self._has_begun = step, True
        self._write()

    @contextmanager
    def noting_mistakes(self) -> Iterator[None]:
        """Note the UserError that ends the block, for those who list runs."""
        try:
            yield
        except UserError as error:
            self.failure = error.message
            raise

    def release(self) -> None:
        """Give it up, if it was taken."""
        if self._file is None:
            return
        self._ended.set()
        self._thread.join()
        self._write(released=True)
        os.close(self._file)  # and with it the lock
        self._file = None

    def _try(self) -> bool:
        # Opened once and closed last: closing any descriptor of the file would give up this process's lock.
        file = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD or (read_lease(self.folder) or Holder()).is_alive:
                os.close(file)
                return False
        self._file = file
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._write()

    def _write(self, released: bool = False) -> None:
        holder = Holder(
            socket.gethostname(), os.environ.get("SLURM_JOB_ID", ""), os.getpid(), self.started, time.time(),
            self.first_step, self.step() if self._has_begun else 0, released, self.failure,
        )  # fmt: skip
        with suppress(OSError):  # a full disk: the lock is what counts; and nothing is lost without fsync
            write_text(self.folder / _FILE, to_json(asdict(holder)), durable=False)


def read_lease(folder: Path, strict: bool = False) -> Holder | None:
    """The holder that lease.json names; None if there is none. For a damaged file None, or Damaged if `strict`."""
    try:
        content = read_content(folder / _FILE, dict)
        holder = as_dataclass(Holder, content) if content else None
        if content and holder is None:
            raise damaged(folder / _FILE, "names no process")
        return holder
    except Damaged:
        if strict:
            raise
        return None


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the lock of the lease; None if the file system has no locks.

    It is taken, shared, for a moment: who needs it waits longer. Not for the holder itself: closing the file would
    give up its lock.
    """
    try:
        lock = (folder / _LOCK).open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return True if error.errno in _HELD else None
    return False
