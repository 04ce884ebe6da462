"""single_node.sh and multi_node.sh: what they hand to torchrun, and what the environment overrides."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, Launcher
from tests.support.marks import slowly

CORES = len(os.sched_getaffinity(0))
TORCHRUN = ["-m", "torch.distributed.run"]
TRAIN = ["-m", "ddp_ft.train"]


def test_single_node_arguments(launch: Launcher) -> None:
    awkward = ["--data", "my pets", "--set", "a.b=[1, 2]", "--run-dir", 'it\'s $HOME "*" \\', ""]
    call = launch("single_node.sh", *awkward, NPROC_PER_NODE="3")
    assert call.process.returncode == 0, call.process.stderr
    assert call.arguments == [*TORCHRUN, "--standalone", "--nproc_per_node=3", *TRAIN, *awkward]


def test_single_node_without_arguments_leaves_the_message_to_train(launch: Launcher) -> None:
    assert launch("single_node.sh", NPROC_PER_NODE="1").arguments[-2:] == TRAIN


def test_the_exit_code_is_torchrun_s(launch: Launcher) -> None:
    launch.add("recorder", "#!/bin/sh\nexit 75\n")
    assert launch("single_node.sh", "--data", "x").process.returncode == 75


def test_without_gpus_processes_share_the_cores(launch: Launcher) -> None:
    call = launch("single_node.sh", "--data", "x")
    processes = min(CORES, 4)
    assert f"--nproc_per_node={processes}" in call.arguments
    assert call.environment["OMP_NUM_THREADS"] == str(max(1, CORES // processes))


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is missing")
def test_affinity_counts_not_the_machine_s_cores(launch: Launcher, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    launch.add("pinned", f'#!/bin/sh\nexec taskset -c {core} "{LAUNCH}/single_node.sh" "$@"\n')
    environment = {
        **os.environ,
        "DDP_FT_PYTHON": str(launch.bin / "recorder"),
        "PATH": f"{launch.bin}:{os.environ['PATH']}",
    }
    # nproc would answer this; the scripts must ask for the cores.
    environment["OMP_NUM_THREADS"] = "7"
    subprocess.run([launch.bin / "pinned"], env=environment, check=True, timeout=60)
    assert b"--nproc_per_node=1\0" in (tmp_path / "arguments").read_bytes()


@pytest.mark.parametrize("start", ["", "trap '' HUP\n"])
def test_under_nohup_torchrun_ignores_the_hangup_too(launch: Launcher, tmp_path: Path, start: str) -> None:
    """`trap ''` is what nohup does. Whether torchrun has the option depends on its version."""
    (tmp_path / "torch/distributed").mkdir(parents=True)
    (tmp_path / "torch/distributed/run.py").write_text("parser.add_argument('--signals-to-handle')")
    recorder = (launch.bin / "recorder").read_text().splitlines()
    imports = f'[[ $1 == -c ]] && exec env PYTHONPATH="{tmp_path}" "{sys.executable}" "$@"'
    launch.add("recorder", "\n".join([recorder[0], imports, *recorder[1:]]))
    wrapper = launch.add("wrapper", f'#!/usr/bin/env bash\n{start}exec "{LAUNCH}/single_node.sh" "$@"\n')
    call = launch(str(wrapper), "--data", "x", NPROC_PER_NODE="1")
    assert ("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in call.arguments) is bool(start), call


@pytest.mark.parametrize(
    ("visible", "processes"),
    [(None, 4), ("0,1", 2), ("2", 1), ("0,1,2,3,4,5", 4), ("0,-1,2", 1), ("GPU-0,GPU-1", 2)],
)
def test_one_process_per_visible_gpu(launch: Launcher, visible: str | None, processes: int) -> None:
    launch.add_gpus(4)
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    call = launch("single_node.sh", "--data", "x", **env)
    assert f"--nproc_per_node={processes}" in call.arguments
    assert call.environment["OMP_NUM_THREADS"] == str(max(1, CORES // processes))


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_no_visible_gpu_means_cpu(launch: Launcher, hidden: str) -> None:
    launch.add_gpus(4)
    call = launch("single_node.sh", "--data", "x", CUDA_VISIBLE_DEVICES=hidden)
    assert f"--nproc_per_node={min(CORES, 4)}" in call.arguments


@pytest.mark.parametrize("flags", [["--device", "cpu"], ["--device=cpu"], ["--set", "compute.device=cpu"]])
def test_device_cpu_counts_no_gpus(launch: Launcher, flags: list[str]) -> None:
    launch.add_gpus(9)
    call = launch("single_node.sh", "--data", "x", *flags)
    assert f"--nproc_per_node={min(CORES, 4)}" in call.arguments


def test_the_environment_wins(launch: Launcher) -> None:
    launch.add_gpus(4)
    call = launch("single_node.sh", "--data", "x", NPROC_PER_NODE="2", OMP_NUM_THREADS="5")
    assert "--nproc_per_node=2" in call.arguments
    assert call.environment["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh"])
def test_nproc_that_is_no_number(launch: Launcher, script: str) -> None:
    call = launch(script, "2", "node01", NPROC_PER_NODE="all")
    assert call.process.returncode == 2
    assert "NPROC_PER_NODE='all'" in call.process.stderr
    assert call.arguments == []


@pytest.mark.parametrize("arguments", [["--help"], ["--data", "x", "--help"]])
def test_help_is_train_s_and_printed_once(launch: Launcher, arguments: list[str]) -> None:
    assert launch("single_node.sh", *arguments).arguments == [*TRAIN, "--help"]


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh", "setup.sh", "demo.sh", "test.sh"])
def test_h_is_the_script_s_usage(launch: Launcher, script: str) -> None:
    call = launch(script, "-h")
    assert call.process.returncode == 0
    assert call.process.stdout.startswith(f"Usage: launch/{script}")
    assert "set -e" not in call.process.stdout
    assert call.arguments == []


def test_a_missing_interpreter_is_one_message(launch: Launcher) -> None:
    call = launch("single_node.sh", "--data", "x", DDP_FT_PYTHON="/nowhere/python")
    assert call.process.returncode == 2
    assert "no Python at '/nowhere/python'" in call.process.stderr


def test_a_clone_without_venv_runs_with_python3_of_the_path(launch: Launcher, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    shutil.copytree(LAUNCH, clone / "launch")
    launch.add("python3", (launch.bin / "recorder").read_text())
    launch(str(clone / "launch" / "single_node.sh"), "--data", "x", DDP_FT_PYTHON="")
    call = launch(str(clone / "launch" / "single_node.sh"), "--data", "x", DDP_FT_PYTHON="", PYTHONPATH="/mine")
    assert call.arguments[-4:] == [*TRAIN, "--data", "x"]
    assert call.environment["PYTHONPATH"] == f"{clone}:/mine"


def test_multi_node_arguments(launch: Launcher) -> None:
    call = launch("multi_node.sh", "2", "node01", "--data", "my pets", NPROC_PER_NODE="8")
    assert call.process.returncode == 0, call.process.stderr
    assert call.arguments == [
        *TORCHRUN, "--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=node01:29500", "--rdzv_id=ddp_ft-node01:29500",
        "--max_restarts=0", "--nproc_per_node=8", *TRAIN, "--data", "my pets",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "endpoint"),
    [
        ("10.0.0.7", "10.0.0.7:29500"),
        ("n-1.cluster_a.org:1234", "n-1.cluster_a.org:1234"),
        ("[fe80::1]", "[fe80::1]:29500"),
        ("[::1]:77", "[::1]:77"),
    ],
)
def test_head_address(launch: Launcher, head: str, endpoint: str) -> None:
    assert f"--rdzv_endpoint={endpoint}" in launch("multi_node.sh", "1:4", head).arguments


def test_multi_node_environment(launch: Launcher) -> None:
    call = launch("multi_node.sh", "1:4", "node01", RDZV_ID="mine", SLURM_JOB_ID="77", MAX_RESTARTS="3")
    assert {"--nnodes=1:4", "--rdzv_id=mine", "--max_restarts=3"} <= set(call.arguments)
    assert "--rdzv_id=77" in launch("multi_node.sh", "2", "node01", SLURM_JOB_ID="77").arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "both needed"),
        (["2"], "both needed"),
        (["--data", "x"], "NNODES '--data'"),
        (["0", "node01"], "NNODES '0'"),
        (["4:1", "node01"], "MIN is above MAX"),
        (["2", "--data", "x"], "HEAD_ADDRESS '--data'"),
        (["2", "fe80::1", "--data", "x"], "HEAD_ADDRESS 'fe80::1'"),
        (["2", "node01:http", "--data", "x"], "HEAD_ADDRESS 'node01:http'"),
    ],
)
def test_multi_node_wrong_usage(launch: Launcher, arguments: list[str], message: str) -> None:
    call = launch("multi_node.sh", *arguments)
    assert call.process.returncode == 2
    assert "Usage: launch/multi_node.sh" in call.process.stderr
    assert message in call.process.stderr.splitlines()[-1]
    assert call.arguments == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PROBE = """
import os, sys, pathlib
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
pathlib.Path(sys.argv[1], f"{rank}-of-{size}").write_text(" ".join(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    # An elastic job that is not full waits `last_call` seconds for more nodes before it starts.
    ("nnodes", "started", "last_call"),
    [("2", 2, 60), *slowly(("1:4", 1, 1), ("1:2", 2, 60))],
)
def test_nodes_meet(launch: Launcher, tmp_path: Path, nnodes: str, started: int, last_call: int) -> None:
    """Real torchrun agents, as many as `started`, on this machine; only ddp_ft.train is replaced, by a probe."""
    (tmp_path / "probe.py").write_text(PROBE)
    answers = tmp_path / "answers"
    answers.mkdir()
    launch.add("python-probe", f'#!/usr/bin/env bash\nexec "{sys.executable}" "${{@/#ddp_ft.train/probe}}"\n')
    environment = {
        **os.environ, "DDP_FT_PYTHON": str(launch.bin / "python-probe"), "NPROC_PER_NODE": "1",
        "PYTHONPATH": str(tmp_path), "PET_RDZV_CONF": f"last_call_timeout={last_call}",
    }  # fmt: skip
    command = [LAUNCH / "multi_node.sh", nnodes, f"127.0.0.1:{_free_port()}", answers, "--data", "pets"]
    nodes = [subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(started)]
    errors = [node.communicate(timeout=100)[1].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0] * started, errors
    found = {file.name: file.read_text() for file in answers.iterdir()}
    assert found == {f"{rank}-of-{started}": "--data pets" for rank in range(started)}
