"""What asks a process to stop: which signals, from whom, and the end of its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_ft.distributed.stop_request import MAY_BE_IGNORED, NCCL_SIGNAL, STOP_SIGNALS, StopRequest, heeded_signals
from tests.support.ranks import run_ranks


@pytest.fixture
def disposed():
    """Lets a test choose what this process does with signals at first."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield signal.signal
    for number, handler in before.items():
        signal.signal(number, handler)


def sent(number: int, stop: StopRequest) -> str:
    with stop.listening():
        os.kill(os.getpid(), number)
        return stop.reason if stop.asked else ""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_asks_to_stop(disposed, number):
    disposed(number, signal.SIG_DFL)
    assert sent(number, StopRequest()) == number.name
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_nohup_ignores_stays_ignored_and_no_other(disposed, number):
    disposed(number, signal.SIG_IGN)
    assert (number in heeded_signals()) == (number not in MAY_BE_IGNORED)
    assert sent(number, StopRequest()) == ("" if number in MAY_BE_IGNORED else number.name)


def test_a_signal_that_the_parent_blocked_arrives():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert sent(signal.SIGTERM, StopRequest()) == "SIGTERM"
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_signal_of_nccl_is_left_to_it_and_named():
    stop = StopRequest(nccl=True)
    assert sent(NCCL_SIGNAL, stop) == ""
    (remark,) = stop.unheeded({})
    assert "SIGUSR1" in remark and "SIGUSR2" in remark
    assert StopRequest().unheeded({"SLURM_JOB_ID": "7"}) == []


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, True),
        ({"PBS_JOBID": "7", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP"}, True),
        ({"SLURM_JOB_ID": "7", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR1,SIGUSR2"}, False),
        ({"SLURM_JOB_ID": "7", "DDP_FT_STOP_FILE": "run/.stop-7"}, False),
    ],
)
def test_what_kills_torchrun_in_a_batch_job_is_named(environ, named):
    remarks = " ".join(StopRequest(has_agent=True).unheeded(environ))
    assert ("SIGUSR2" in remarks and "touch" in remarks) is named
    assert ("--signals-to-handle" in remarks) is (named and "TORCHELASTIC_SIGNALS_TO_HANDLE" in environ)


CHILD = """
import sys, time
from pathlib import Path
from ddp_ft.distributed.stop_request import StopRequest
stop = StopRequest(has_agent=True)
assert not stop.asked
Path(sys.argv[1]).touch()
deadline = time.monotonic() + 60
while not stop.asked and time.monotonic() < deadline:
    stop._looked = -1.0  # it looks once a second
    time.sleep(0.01)
Path(sys.argv[2]).write_text(stop.reason)
"""
PARENT = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""


def test_the_end_of_torchrun_asks_its_processes_to_stop(tmp_path):
    started, ended = tmp_path / "started", tmp_path / "ended"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", PARENT, CHILD, started, ended], env=environment, check=True, timeout=60)
    deadline = time.monotonic() + 60
    while not (ended.exists() and ended.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ended.read_text() == "the end of torchrun"


def go_on_without_the_store(world):
    from dataclasses import replace

    from torch.distributed import PrefixStore, TCPStore, broadcast_object_list

    from ddp_ft.distributed import world as module

    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world.is_main else None
    port = [server.port if server else None]
    broadcast_object_list(port)
    store = PrefixStore("of torchrun", TCPStore("127.0.0.1", port[0], is_master=False, wait_for_workers=False))
    world = replace(world, store=store)
    before = world.from_main(lambda: f"before, by rank {world.rank}")
    world.barrier()
    del server
    module.failure_store = store
    after = [world.from_main(lambda n=n: f"after {n}, by rank {world.rank}") for n in range(2)]
    return before, after, module.has_failure(), module.claim_failure(world.rank)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_outlive_the_store_of_torchrun_agree_without_it(world_size):
    results = run_ranks(world_size, go_on_without_the_store)
    expected = ("before, by rank 0", ["after 0, by rank 0", "after 1, by rank 0"], False)
    assert [result[:3] for result in results] == [expected] * world_size
    assert [result[3] for result in results] == [rank == 0 for rank in range(world_size)]
