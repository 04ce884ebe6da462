"""The processes that read samples: how many there are, and how they start, die and end."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ddp_ft.distributed.environment import usable_cores
from ddp_ft.distributed.stop_request import STOP_SIGNALS
from ddp_ft.errors import UserError, one_line

_MOST_WORKERS = 16  # some 600 images/s each are more than fine-tuning on one GPU takes; each costs memory
# Seconds without a batch after which the wait is reported, and how often, before it ends: a network file system may be
# away for minutes, and other ranks wait half an hour by default.
PATIENCE, MOST_REPORTS = 60.0, 30
_JOIN_SECONDS = 5.0

_CAUSES = {
    signal.SIGKILL: "Nearly always the memory of the machine or of the job was full. Ask for more of it; or take "
    "fewer workers (--workers, 0 for none), and to train smaller micro-batches (--micro-batch).",
    signal.SIGSEGV: "A decoder crashed, or native code of a transform. `ddp-ft doctor --data DATA` reads every image.",
}


def default_workers(device_type: str, local_world_size: int) -> int:
    """The number of loader processes of a rank, from the cores that this process may use.

    CUDA: all of the rank's cores but one, which drives the GPU; at least one, to decode while the GPU computes.
    CPU: one if the rank has two cores or more, because the model's own threads use the others.
    """
    cores = usable_cores() // local_world_size
    if device_type == "cpu":
        return min(1, cores // 2)
    return min(max(1, cores - 1), _MOST_WORKERS)


class Batches(Iterator[Any]):
    """What a loader with so many workers yields. Close it to end them.

    `make_loader` makes the loader for a number of workers, and for none, with a warning, if they cannot be started.
    Raises UserError if a worker dies, or if none sends anything for half an hour.
    """

    def __init__(self, make_loader: Callable[[int], DataLoader[Any]], workers: int) -> None:
        self._workers: list[BaseProcess] = []
        self._batches: Iterator[Any] | None = self._started(make_loader, workers)

    def _started(self, make_loader: Callable[[int], DataLoader[Any]], workers: int) -> Iterator[Any]:
        before = set(active_children())
        try:
            with _signal_kept(signal.SIGCHLD), warnings.catch_warnings():
                # More workers than cores is the caller's choice, and Python >= 3.12 warns of any fork beside threads.
                warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
                warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
                loader = make_loader(workers)
                loader.timeout = PATIENCE if workers else 0
                return iter(loader)
        except (OSError, RuntimeError) as error:  # no process, no thread, no file, or no room in /dev/shm for a lock
            if not workers:
                raise
            self._workers = [child for child in active_children() if child not in before]
            self._end_workers()
            with _unraisable_ignored():
                traceback.clear_frames(error.__traceback__)
            _warn(f"loader workers cannot be started ({one_line(error)}); samples are read in the process itself.")
            return iter(make_loader(0))
        finally:
            self._workers = [child for child in active_children() if child not in before]

    def __next__(self) -> Any:
        assert self._batches is not None, "closed"
        for report in range(1, MOST_REPORTS + 1):
            try:
                with _signal_kept(signal.SIGCHLD, self._raise_if_failed):
                    self._raise_if_failed()
                    return next(self._batches)
            except StopIteration:
                raise
            except BaseException as error:
                if not self._workers:
                    raise
                # Its frames hold torch's iterator, and so the workers, for as long as the error is kept.
                traceback.clear_frames(error.__traceback__)
                self._raise_if_failed(in_peace=True)
                if not (isinstance(error, RuntimeError) and "timed out" in str(error)):
                    raise
            _warn(f"the loader's workers have sent nothing for {report * PATIENCE:g} s: {self._states()}.")
        states = self._states()
        self._end_workers()  # lest torch waits for stopped ones
        raise UserError(
            f"The loader's workers have sent nothing for {MOST_REPORTS * PATIENCE:g} s: {states}.",
            "Is the disk with the data there? Without workers (--workers 0) nothing can wait for them.",
        )

    def _raise_if_failed(self, *_signal: Any, in_peace: bool = False) -> None:
        """UserError if a worker has died; `in_peace`: also if it ended as they do after the last batch."""
        if dead := [worker for worker in self._workers if worker.exitcode or (in_peace and worker.exitcode == 0)]:
            raise _death(dead[0])

    def _states(self) -> str:
        return ", ".join(f"{worker.pid} {_state(worker.pid)}" for worker in self._workers)

    def close(self) -> None:
        """End the workers now, even while a traceback keeps this object."""
        self._batches = None
        self._end_workers()

    def _end_workers(self) -> None:
        """Kill those that are left: stopped ones, and those whose loader an error keeps. As they ignore SIGTERM,
        multiprocessing would wait for them for ever when this process exits."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
                worker.join(_JOIN_SECONDS)
        self._workers = []


def prepare_worker(_worker: int) -> None:
    """To be called first in each worker.

    A stop request reaches the whole process group; the parent decides, and the workers end when it does. What cannot
    be sent would be lost, and the parent would wait for it: then the worker ends.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end))  # noqa: B010  (multiprocessing's own hook)


def _end(error: Exception, _unsent: Any) -> None:
    _warn(f"a loader worker ends, since it cannot send its batches: {type(error).__name__}: {one_line(error)}.")
    os._exit(1)


def _death(worker: BaseProcess) -> UserError:
    code = worker.exitcode or 0
    if code < 0:
        number = signal.Signals(-code)
        hint = _CAUSES.get(number, "Something outside of this program has ended it, or native code that it called.")
        return UserError(f"A loader worker (process {worker.pid}) was ended by {number.name}.", hint)
    hint = "Without workers (--workers 0) the error appears where it arises."
    return UserError(f"A loader worker (process {worker.pid}) ended by itself, with exit code {code}.", hint)


def _state(pid: int | None) -> str:
    """What a process does, in words, where /proc has it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "alive"
    return {"R": "computes", "D": "waits for a disk", "T": "is stopped", "Z": "is dead"}.get(letter, "waits")


@contextmanager
def _signal_kept(number: int, handler: Callable[..., None] | None = None) -> Iterator[None]:
    """Handle a signal in this way within the block alone, and leave no other handler behind. Not in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if handler is not None:
        signal.signal(number, handler)
    try:
        yield
    finally:
        # torch's own handler raises wherever the main thread is, even while a checkpoint is written.
        signal.signal(number, signal.SIG_DFL if before is None else before)


@contextmanager
def _unraisable_ignored() -> Iterator[None]:
    """For torch's iterators that failed while they were made: when they go, they ask for what they do not have yet."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def _warn(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)  # noqa: T201
