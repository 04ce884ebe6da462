"""single_node.sh and multi_node.sh: which command they become."""

import shutil
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, Launcher

TRAIN = ["-m", "ddp_ft.train"]
NODE = ["-m", "ddp_ft.cli.node"]


def test_single_node_arguments(launch: Launcher) -> None:
    awkward = ["--data", "my pets", "--set", "a.b=[1, 2]", "--run-dir", 'it\'s $HOME "*" \\', ""]
    call = launch("single_node.sh", *awkward)
    assert call.process.returncode == 0, call.process.stderr
    assert call.arguments == [*TRAIN, "--processes", "auto", *awkward]


def test_the_environment_wins(launch: Launcher) -> None:
    assert launch("single_node.sh", NPROC_PER_NODE="3").arguments == [*TRAIN, "--processes", "3"]


def test_the_exit_code_is_train_s(launch: Launcher) -> None:
    launch.add("recorder", "#!/bin/sh\nexit 75\n")
    assert launch("single_node.sh", "--data", "x").process.returncode == 75


@pytest.mark.parametrize("arguments", [["--help"], ["--data", "x", "--help"]])
def test_help_is_train_s(launch: Launcher, arguments: list[str]) -> None:
    assert launch("multi_node.sh", *arguments).arguments == [*TRAIN, "--help"]


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
    assert call.arguments == [*TRAIN, "--processes", "auto", "--data", "x"]
    assert call.environment["PYTHONPATH"] == f"{clone}:/mine"


def test_multi_node_arguments(launch: Launcher) -> None:
    call = launch("multi_node.sh", "2", "node01", "--data", "my pets")
    assert call.process.returncode == 0, call.process.stderr
    assert call.arguments == [
        *NODE, "--nodes", "2", "--rendezvous", "node01:29500", "--job", "ddp_ft-node01:29500", "--restarts", "0", "--",
        "--data", "my pets",
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
    assert endpoint in launch("multi_node.sh", "1:4", head).arguments


def test_multi_node_environment(launch: Launcher) -> None:
    call = launch("multi_node.sh", "1:4", "node01", RDZV_ID="mine", SLURM_JOB_ID="77", MAX_RESTARTS="3")
    assert {"1:4", "mine", "3"} <= set(call.arguments)
    assert "77" in launch("multi_node.sh", "2", "node01", SLURM_JOB_ID="77").arguments


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
