"""The tour of a GPU machine: what it starts, what its lines are, and all of it on a CPU."""

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.lines import Lines, check_name
from tests.launch.conftest import LAUNCH, Launcher

FILE = "tests/gpu/test_train.py"


def test_it_calls_pytest_on_the_checks(launch: Launcher, tmp_path: Path) -> None:
    call = launch("gpu.sh", "--only", "bf16 or fp32", "--minutes", "10", OUT=str(tmp_path / "out"))
    assert call.process.returncode == 0, call.process.stderr
    arguments = call.arguments
    assert arguments[:2] == ["-m", "pytest"] and arguments[arguments.index("-k") + 1] == "bf16 or fp32"
    assert arguments[arguments.index("--device") + 1] == "cuda" and arguments[arguments.index("--seconds") + 1] == "360"
    # And those of single modules that need a GPU.
    assert "tests/gpu" in arguments and "tests/training/test_waits.py" in arguments
    assert call.environment["OUT"] == str(tmp_path / "out") and (tmp_path / "out" / "log.txt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--device", "tpu"], "neither cuda nor cpu"),
        (["--minutes", "soon"], "no whole number"),
        (["--minutes"], "needs a value"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_wrong_words(launch: Launcher, tmp_path: Path, given: list[str], message: str) -> None:
    process = launch("gpu.sh", *given, OUT=str(tmp_path / "out")).process
    assert process.returncode == 2 and message in process.stderr and not (tmp_path / "out").exists()


def test_without_a_gpu_nothing_is_checked(launch: Launcher, tmp_path: Path) -> None:
    python = launch.add("without_cuda", '#!/bin/sh\ncat >/dev/null\necho "$@" >>"$OUT/calls"\nexit 1\n')
    call = launch("gpu.sh", DDP_FT_PYTHON=str(python), OUT=str(tmp_path / "out"))
    assert call.process.returncode == 2
    assert (tmp_path / "out" / "calls").read_text() == "- cuda\n", (
        "only what asks torch, and neither checks nor benchmarks"
    )


def report(name: str, outcome: Any, when: Any = "call", longrepr: Any = None, **more: Any) -> pytest.TestReport:
    return pytest.TestReport(f"{FILE}::test_{name}", (FILE, 1, name), {}, outcome, longrepr, when, **more)


def test_lines() -> None:
    """A check's seconds are those of its set-up too; a check that fails after it passed fails."""
    stream = io.StringIO()
    lines = Lines(stream)
    skipped = (FILE, 1, "Skipped: needs 2 GPUs,\nthis machine has 1")
    for each in (
        report("a[bf16]", "passed", "setup", duration=2.0),
        report("a[bf16]", "passed", duration=1.5, user_properties=[("note", "9 images/s")]),
        report("a[bf16]", "passed", "teardown", duration=0.1),
        report("b", "skipped", "setup", skipped, duration=0.0),
        report("b", "passed", "teardown", duration=0.0),
        report("c", "passed", duration=4.0),
        report("c", "failed", "teardown", "it broke " + "x" * 900, duration=0.0),
    ):
        lines.pytest_runtest_logreport(each)
    first = stream.getvalue().splitlines()
    assert first[0] == "passed     3.5 s  gpu/train: a[bf16]: 9 images/s"
    assert first[1] == "skipped    0.0 s  gpu/train: b: needs 2 GPUs, this machine has 1"
    assert first[3].startswith("failed     4.0 s  gpu/train: c: it broke xxx") and len(first[3]) < 400
    lines.pytest_sessionfinish()
    summary = stream.getvalue().splitlines()[len(first) :]
    assert summary[1] == "1 failed, 1 skipped, 2 passed" and summary[2] == first[3]
    assert summary[3] == "skipped     1 x  needs 2 GPUs, this machine has 1" and summary[4] == first[2]
    assert check_name("tests/data/image/test_mixup.py::test_on_cuda") == "data/image/mixup: on_cuda"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_on_a_cpu(tmp_path: Path) -> None:
    """Every check that does not need CUDA passes here, so that a GPU is what the first failure there is about."""
    environment = {**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [LAUNCH / "gpu.sh", "--device", "cpu", "--smoke", "--minutes", "9"]  # a busy machine takes longer
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout
    outcomes = [line.split()[0] for line in done.stdout.partition("\n\n")[0].splitlines()[2:]]
    assert set(outcomes) == {"passed", "skipped"} and outcomes.count("passed") >= 30, done.stdout
    assert "needs CUDA" in done.stdout and (tmp_path / "pytest.txt").stat().st_size > 0
