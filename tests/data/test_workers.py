"""Loader workers that cannot start, die, stop or cannot send: each ends with a message, and none is left behind."""

import errno
import multiprocessing.queues
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from ddp_ft.contracts import Batch
from ddp_ft.data import workers
from ddp_ft.data.loader import Portion
from ddp_ft.errors import UserError
from tests.data.image.image_files import NumberSource
from tests.data.test_loader import CENTRE, children
from tests.support.loading import eval_loader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


class Troubled(NumberSource):
    """In a worker something happens before sample 20 is read."""

    def __init__(self, trouble: Callable[[], object], size: int = 40) -> None:
        super().__init__(size)
        self.trouble, self.parent = trouble, os.getpid()

    def read(self, index: int) -> Batch:
        if index == 20 and os.getpid() != self.parent:
            self.trouble()
        return super().read(index)


def portions(source: NumberSource, processes: int = 1) -> Iterator[Portion]:
    return eval_loader(source, CENTRE, 4, workers=processes).portions()


def is_same(found: list[Portion], expected: list[Portion]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(one.batch[name], other.batch[name]) for one, other in pairs for name in other.batch)


def lose_the_queue() -> None:
    def dumps(_sent: object) -> bytes:
        raise OSError(errno.ENAMETOOLONG, "AF_UNIX path too long")

    multiprocessing.queues._ForkingPickler.dumps = dumps


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was ended by SIGKILL\.\n.*memory"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was ended by SIGSEGV\.\n.*decoder"),
        (lambda: os._exit(3), r"with exit code 3\."),
        (lose_the_queue, r"with exit code 1\."),
    ],
)
def test_a_worker_that_dies_ends_the_wait(trouble, message) -> None:
    before = children()
    with pytest.raises(UserError, match=message) as caught:
        list(portions(Troubled(trouble), 2))
    assert caught.value.hint and children() == before  # while the error is kept


def test_the_death_of_a_worker_disturbs_nothing_else() -> None:
    """torch's own handler raises in the middle of whatever the main thread does."""
    handler = signal.getsignal(signal.SIGCHLD)
    received = portions(NumberSource(40))
    next(received)
    [worker] = [child for child in multiprocessing.active_children() if str(child.pid) in children()]
    worker.kill()
    worker.join()
    assert signal.getsignal(signal.SIGCHLD) == handler
    with pytest.raises(UserError, match="SIGKILL"):
        list(received)


def test_a_wait_for_stopped_workers_is_reported_and_ends(monkeypatch, capsys) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.1)
    monkeypatch.setattr(workers, "MOST_REPORTS", 1000)
    heard, said = multiprocessing.Pipe(duplex=False)
    before = children()
    received = portions(Troubled(lambda: (heard.recv(), os.kill(os.getpid(), signal.SIGSTOP))))
    for _ in range(5):  # all but the one with sample 20, however long they take
        next(received)
    said.send("all have come; before, what the worker's thread still has to send would be stopped with it")
    [worker] = children() - before
    while workers._state(int(worker)) != "is stopped":
        time.sleep(0.01)
    capsys.readouterr()
    monkeypatch.setattr(workers, "MOST_REPORTS", 2)
    with pytest.raises(UserError, match=r"sent nothing for 0\.2 s: \d+ is stopped"):
        next(received)
    assert capsys.readouterr().err.count("is stopped") == 2 and children() == before


def test_an_error_in_a_worker_leaves_none_behind() -> None:
    before = children()
    with pytest.raises(RuntimeError, match=r"number/20: ZeroDivisionError") as caught:
        list(portions(Troubled(lambda: 1 / 0), 2))
    assert caught.value.__traceback__ and children() == before


@pytest.mark.parametrize("folder", ["x" * 120, "none/there"])
def test_no_folder_for_temporary_files_is_needed(tmp_path: Path, monkeypatch, folder: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    assert is_same(list(portions(NumberSource(9))), list(portions(NumberSource(9), 0)))


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open no more than so many files, pipes and sockets."""
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), [os.dup(0)]
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    while held[-1] < highest:  # fill what is free below
        held.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in held:
            os.close(each)


@pytest.mark.parametrize("free", range(1, 10))
def test_without_room_for_workers_the_process_reads_itself(capsys, free: int) -> None:
    """Wherever the start fails: after some workers, or before torch's loader has what it asks for when it ends."""
    expected = list(portions(NumberSource(9), 0))
    with free_descriptors(free):
        found = list(portions(NumberSource(9), 4))
    assert is_same(found, expected) and not active_children()
    assert "loader workers cannot be started ([Errno 24] Too many open files)" in capsys.readouterr().err
