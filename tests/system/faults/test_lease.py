"""One process at a time writes a run folder, and its right to do so ends with it."""

import contextlib
import os
import signal
import time

import pytest

from ddp_ft.errors import UserError
from ddp_ft.run_folder.lease import Lease, read_lease
from tests.support.fork_server import PATIENCE, fork
from tests.support.runs import arguments, read, start_process, train_here, wait_for


def holder(folder):
    """A process that holds the lease and has forked a loader worker, with pids in files."""
    lease = Lease(folder, lambda: 7)
    lease.take()
    lease.begin_at(5)
    if os.fork() == 0:
        (folder / "worker.new").write_text(str(os.getpid()))
        (folder / "worker.new").rename(folder / "worker")  # whole, once it is there
        time.sleep(60)
        os._exit(0)
    (folder / "ready").touch()
    time.sleep(60)


@pytest.fixture
def held(tmp_path):
    """A folder whose lease another process has: (folder, process)."""
    # Not a fork of this process: what it would collect as garbage there joins threads that a fork does not have.
    process = fork(holder, tmp_path)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "ready").exists() or not (tmp_path / "worker").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    yield tmp_path, process
    for each in (process.pid, int((tmp_path / "worker").read_text())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def test_the_holder_is_named(held):
    folder, process = held
    pid = process.pid
    with pytest.raises(UserError, match=rf"being written by another start: process {pid} on .*, last heard of \d+ s"):
        Lease(folder, lambda: 0, patience=0.3).take()
    holder = read_lease(folder)
    assert (holder.pid, holder.first_step, holder.step) == (pid, 5, 7)


def test_an_orphaned_loader_worker_does_not_hold_it(held):
    folder, process = held
    process.kill()
    process.join()
    os.kill(int((folder / "worker").read_text()), 0)  # it lives
    lease = Lease(folder, lambda: 3, patience=0)
    lease.take()
    assert read_lease(folder).pid == os.getpid()
    lease.release()
    other = Lease(folder, lambda: 3, patience=0)
    other.take()
    other.release()


def test_a_second_start_is_refused_and_harms_nothing(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("ddp_ft.run_folder.lease.PATIENCE_SECONDS", 0.5)
    process = start_process(arguments(shapes, tmp_path / "r", epochs=2000))
    try:
        wait_for(tmp_path / "r/checkpoints/last", process)
        with pytest.raises(UserError, match="is being written by another start"):
            train_here(shapes, tmp_path / "r", epochs=2000)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert read(tmp_path / "r", "lease.json")["step"] == read(tmp_path / "r", "summary.json")["step"] > 0
