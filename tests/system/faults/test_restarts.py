"""Restarts by torchrun itself: after a rank's death, and as agents go and come."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.runs import arguments, column, read, train_here
from tests.system.faults import nets
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# Seconds: how soon an agent that is gone is missed, and how long a rendezvous waits for more than the least nodes.
RENDEZVOUS = "join_timeout=60,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,timeout=60"
# With the store that the agents of torch 2.15 share by default, one that joins later waits in vain for its address.
OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
EPOCHS, PAUSE = 40, 0.15


def agent(options: list[str], args: list[str], log: Path, more: dict[str, str]) -> "subprocess.Popen[bytes]":
    """torchrun with these options on the command with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*TORCHRUN, *options, "-m", "ddp_ft.train", *args], env=environment, stdout=stream, stderr=stream
        )


@contextmanager
def ended(*agents: "subprocess.Popen[bytes]") -> Iterator[None]:
    """At the end of the block no agent runs any more, and no worker of theirs."""
    try:
        yield
    finally:
        for process in agents:
            kill_with_workers(process)


def kill_with_workers(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL an agent and the processes it has started, as when a node is switched off."""
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)


def until(condition: "object", agents: list["subprocess.Popen[bytes]"], log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        ended_early = [process.returncode for process in agents if process.poll() is not None]
        assert not ended_early and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_an_agent_starts_anew_hear_nothing_of_those_before(shapes, tmp_path, world_size):
    """The agent's store outlives them, and with it the answers and addresses that they left there."""
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    args = ["--set", "checkpoint.every_steps=3"]
    fault = Fault(str(tmp_path / "fault"), "kill", "train", 6, rank=1)
    first = ForkedJob(world_size, arguments(shapes, run, *args, net="with_batch_norm", epochs=2), fault.environment())
    assert first.end()[0][1] == -signal.SIGKILL
    for folder, store in ((run, first.store), (unbroken, None)):
        again = arguments(shapes, folder, *args, net="with_batch_norm", epochs=2)
        codes, said = ForkedJob(world_size, again, store=store).end()
        assert codes == [0] * world_size, said
    assert_same_result(run, unbroken)


@pytest.mark.slow
def test_torchrun_restarts_a_job_one_rank_of_which_was_killed(shapes, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    more = ["--model", f"{nets.THIS_FILE}:armed", "--set", "checkpoint.every_steps=3"]
    codes, said = run_forked(2, arguments(shapes, tmp_path / "whole", *more, epochs=2))
    assert codes == [0, 0], said
    fault = Fault(str(tmp_path / "fault"), "kill", "train", 6, rank=1)
    options = ["--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    process = agent(options, arguments(shapes, run, *more, epochs=2), log, fault.environment())
    with ended(process):
        assert process.wait(120) == 0, log.read_text()[-3000:]
    assert fault.reached.exists()
    assert read(run, "summary.json")["restarts"] == 1
    assert_same_result(run, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_agents_go_and_come_while_the_run_goes_on(shapes, tmp_path):
    """Three nodes of one process; one is switched off, later another joins: the curve is that of one process."""
    run, seen, log = tmp_path / "run", tmp_path / "seen", tmp_path / "log"
    args = arguments(shapes, run, "--set", "checkpoint.every_steps=3", epochs=EPOCHS)
    args += ["--model", f"{nets.THIS_FILE}:recording"]
    train_here(shapes, tmp_path / "whole", epochs=EPOCHS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--nnodes=1:3", "--nproc_per_node=1", "--max-restarts=9", "--rdzv-backend=c10d", "--rdzv-id=run"]
    options += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", f"--rdzv-conf={RENDEZVOUS}"]
    more = {nets.RECORDS: str(seen), nets.PAUSE: str(PAUSE), **OWN_STORES}
    first = agent([*options, "--rdzv-conf", f"{RENDEZVOUS},is_host=1"], args, log, more)
    others = [agent([*options, "--rdzv-conf", f"{RENDEZVOUS},is_host=0"], args, log, more) for _ in range(2)]
    with ended(first, *others):
        until(lambda: _passed(run, 4), [first, *others], log)
        kill_with_workers(others[1])
        until(lambda: nets.read_world_sizes(seen)[-1] == 2, [first, others[0]], log)
        late = agent([*options, "--rdzv-conf", f"{RENDEZVOUS},is_host=0"], args, log, more)
        with ended(late):
            for process in (first, others[0], late):
                assert process.wait(200) == 0, log.read_text()[-3000:]
    sizes = nets.read_world_sizes(seen)
    assert sizes[-1] == 3 and 2 in sizes and sizes.index(2) > sizes.index(3), sizes
    assert read(run, "summary.json")["status"] == "done"
    assert column(run, "step") == list(range(1, 4 * EPOCHS + 1))
    assert column(run, "loss") == pytest.approx(column(tmp_path / "whole", "loss"), rel=1e-4)
    assert column(run, "loss", "val") == pytest.approx(column(tmp_path / "whole", "loss", "val"), rel=1e-4)


def _passed(run: Path, step: int) -> bool:
    return any(int(folder.name[-8:]) >= step for folder in (run / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_falls_silent_is_noticed_and_the_others_show_where_they_wait(shapes, tmp_path, world_size):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    args = ["--set", "compute.silence_seconds=4", "--set", "checkpoint.every_steps=3"]
    fault = Fault(str(tmp_path / "fault"), "wait", "train", 6)
    job = ForkedJob(world_size, arguments(shapes, run, *args, epochs=2), fault.environment())
    job.wait_for(fault.reached)
    silent = world_size - 1
    job.signal(signal.SIGSTOP, silent)
    fault.release()
    begin = time.monotonic()
    codes, said = job.end(40)
    assert time.monotonic() - begin < 20, said
    assert all(codes), said
    stacks = {file.name: file.read_text() for file in (run / "stacks").iterdir()}
    assert {f"rank_{rank}.txt" for rank in range(world_size) if rank != silent} <= set(stacks)
    assert all("training/step.py" in text for text in stacks.values())
    for folder in (run, unbroken):
        codes, said = run_forked(world_size, arguments(shapes, folder, *args, epochs=2))
        assert codes == [0] * world_size, said
    assert_same_result(run, unbroken)
