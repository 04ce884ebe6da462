"""A node's share: how many processes and threads, and the shield between Slurm's signals and torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_ft.errors import UserError
from ddp_ft.slurm.node import asks_for_cpu, choose_processes, torchrun_command

CORES = len(os.sched_getaffinity(0))
SHIELD = "import sys; from ddp_ft.cli.node import run_shielded; sys.exit(run_shielded(sys.argv[2:], {}, sys.argv[1]))"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists four."""
    file = tmp_path / "nvidia-smi"
    file.write_text("#!/bin/sh\nfor n in 0 1 2 3; do echo \"GPU $n: H200\"; echo '  MIG 1g.18gb'; done\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("environ", "words", "processes"),
    [
        ({}, [], 4),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, [], 2),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,2"}, [], 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, [], min(CORES, 4)),
        ({}, ["--device", "cpu"], min(CORES, 4)),
        ({"NPROC_PER_NODE": "7"}, [], 7),
    ],
)
def test_processes_of_a_node(environ: dict[str, str], words: list[str], processes: int) -> None:
    assert choose_processes(words, environ) == (processes, max(1, CORES // processes))
    assert choose_processes(words, {**environ, "OMP_NUM_THREADS": "5"}) == (processes, 5)


def test_affinity_counts_and_not_the_machine() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from ddp_ft.cli.node import choose_processes; print(choose_processes(['--device=cpu'], {}))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "(1, 1)"


@pytest.mark.parametrize("given", ["0", "all", "-1", "1.5"])
def test_a_number_of_processes_that_is_none(given: str) -> None:
    with pytest.raises(UserError, match="NPROC_PER_NODE"):
        choose_processes([], {"NPROC_PER_NODE": given})


def test_which_words_ask_for_the_cpu() -> None:
    assert asks_for_cpu(["--data", "x", "--set", "compute.device=cpu"])
    assert not asks_for_cpu(["--data", "cpu", "--run-dir", "--device=cpux"])


def test_torchrun_on_one_node_and_on_several() -> None:
    assert "--standalone" in torchrun_command(1, None, "7.0", 2, "n1")
    several = torchrun_command(3, "n1:20284", "7.0", 2, "n2")
    assert {"--nnodes=3", "--rdzv_endpoint=n1:20284", "--rdzv_id=7.0", "--local_addr=n2"} <= set(several)
    with pytest.raises(UserError, match="rendezvous"):
        torchrun_command(3, None, "7.0", 2, None)


def shield(tmp_path: Path, inner: str) -> "tuple[subprocess.Popen[bytes], Path]":
    stop_file = tmp_path / "run" / "stop"
    process = subprocess.Popen([sys.executable, "-c", SHIELD, stop_file, "/bin/bash", "-c", inner])
    return process, stop_file


def test_signals_become_lines_of_the_stop_file_and_do_not_reach_torchrun(tmp_path: Path) -> None:
    started = tmp_path / "started"
    process, stop_file = shield(
        tmp_path, f"touch {started}; until [ -e {tmp_path}/go ]; do /bin/sleep 0.05; done; exit 3"
    )
    while not started.exists():
        time.sleep(0.02)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
        time.sleep(0.2)
    assert process.poll() is None
    assert sorted(set(stop_file.read_text().split("\n"))) == ["", "step SIGHUP", "step SIGTERM", "step SIGUSR1"]
    (tmp_path / "go").touch()
    assert process.wait(20) == 0  # a node that was asked to stop is no failed node


@pytest.mark.parametrize(("inner", "code"), [("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_failure_is_noted_and_keeps_its_code(tmp_path: Path, inner: str, code: int) -> None:
    process, stop_file = shield(tmp_path, inner)
    assert process.wait(20) == code and stop_file.read_text() == "crash\n"


def test_success_leaves_nothing(tmp_path: Path) -> None:
    process, stop_file = shield(tmp_path, "exit 0")
    assert process.wait(20) == 0 and not stop_file.exists()
