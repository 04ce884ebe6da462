"""A rank whose peer died or stands still leaves within seconds, wherever it is blocked."""

import ctypes
import os
import signal
import time

import pytest
import torch
from torch.distributed import TCPStore

from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.watchdog import watching
from ddp_ft.distributed.world import connect
from tests.support.fork_server import become, fork
from tests.support.ranks import _rank_environment


def rank_process(folder, environment, silence, way):
    """A rank: joins the group, tells that it has, and then sleeps where no Python code can run."""
    become(environment, folder)
    launch = read_launch()
    os.dup2(os.open(folder / f"errors_{launch.rank}", os.O_WRONLY | os.O_CREAT), 2)
    stacks = folder / "stacks"
    with connect(launch, torch.device("cpu"), 5) as world, watching(world, stacks, silence, one_machine=True):
        world.barrier()
        (folder / f"ready_{launch.rank}").touch()
        if way == "fork" and launch.rank == 1 and os.fork() == 0:
            time.sleep(20)  # as an orphaned loader worker does for a while
            os._exit(0)
        if way == "leave":
            raise SystemExit(3 if launch.rank == 0 else 0)
        ctypes.CDLL(None).sleep(60)


@pytest.fixture
def ranks(tmp_path):
    """start(world size, silence in seconds, way) -> the ranks' processes, all in the group."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = []

    def start(size, silence, way="block"):
        for rank in range(size):
            environment = _rank_environment(rank, size, store.port)
            started.append(fork(rank_process, tmp_path, environment, silence, way))
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready_*"))) < size:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return started

    yield start
    for process in started:
        process.kill()  # of a stopped process too
        process.join()


def ends(process, within):
    """Its exit code."""
    began = time.monotonic()
    process.join(within + 10)
    assert time.monotonic() - began < within
    return process.exitcode


def errors(folder):
    return "".join(file.read_text() for file in sorted(folder.glob("errors_*")))


LATER = [pytest.param(rank, marks=pytest.mark.slow) for rank in (0, 2)]


@pytest.mark.parametrize("victim", [1, *LATER])
def test_a_blocked_rank_leaves_when_a_peer_has_died(ranks, tmp_path, victim):
    processes = ranks(3, silence=60, way="fork" if victim == 1 else "block")
    processes[victim].kill()
    others = {0, 1, 2} - {victim}
    # about 4 s on a machine of its own; on one with other work still far below the silence
    assert [ends(processes[rank], within=30) for rank in others] == [1, 1]
    assert errors(tmp_path).count(f"Error: rank {victim} died") == 1
    for rank in others:
        text = (tmp_path / f"stacks/rank_{rank}.txt").read_text()
        assert f"rank {rank}: rank {victim} died" in text
        assert "in rank_process" in text  # where the main thread stood


@pytest.mark.parametrize("victim", [1, LATER[0]])
def test_a_rank_that_stands_still_is_noticed(ranks, tmp_path, victim):
    processes = ranks(2, silence=3)
    time.sleep(1.5)
    os.kill(processes[victim].pid, signal.SIGSTOP)
    assert ends(processes[1 - victim], within=3 + 30) == 1
    assert f"rank {victim} sent no sign of life for 3 s" in errors(tmp_path)
    assert (tmp_path / f"stacks/rank_{1 - victim}.txt").exists()


@pytest.mark.slow
def test_a_job_that_stood_still_as_a_whole_goes_on(ranks, tmp_path):
    """A suspended job, or a laptop that slept: nobody is silent beside the others."""
    processes = ranks(3, silence=3)
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(5)
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(4)
    assert [process.exitcode for process in processes] == [None] * 3


def test_who_leaves_in_peace_is_not_missed(ranks, tmp_path):
    processes = ranks(3, silence=3, way="leave")
    assert [ends(process, within=30) for process in processes] == [3, 0, 0]
    assert not (tmp_path / "stacks").exists()
