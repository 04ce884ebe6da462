"""test.sh: all checks run, pytest only after them, and its selection."""

from tests.launch.conftest import Launcher

LINTS = ["ruff check", "ruff format", "mypy", "importlinter"]
# Notes each call of the interpreter; those that match the word in FAIL fail.
PYTHON = """#!/usr/bin/env bash
printf '%s|' "$@" >>"{folder}/calls"
echo "threads=$OMP_NUM_THREADS" >>"{folder}/calls"
[[ -z ${{FAIL:-}} || "$*" != *$FAIL* ]]
"""


def calls(launch: Launcher, *args: str, code: int = 0, **env: str) -> tuple[list[str], str]:
    python = launch.add("python-log", PYTHON.format(folder=launch.folder))
    process = launch("test.sh", *args, DDP_FT_PYTHON=str(python), **env).process
    assert process.returncode == code, process.stderr
    return (launch.folder / "calls").read_text().splitlines(), process.stderr


def test_lints_then_pytest_without_the_slow_ones(launch: Launcher) -> None:
    found, _ = calls(launch, "tests/data", "-k", "a or b")
    assert len(found) == 5
    assert all(name.split()[-1] in call for name, call in zip(LINTS, found, strict=False))
    assert found[-1].startswith("-m|pytest|-n|")
    assert found[-1].endswith("|-m|not slow|tests/data|-k|a or b|threads=1")


def test_slow_adds_the_slow_ones(launch: Launcher) -> None:
    found, _ = calls(launch, "tests/data", "--slow")
    assert "not slow" not in found[-1] and "--slow" not in found[-1]
    assert found[-1].endswith("|tests/data|threads=1")


def test_a_failed_lint_stops_before_pytest_but_after_the_other_lints(launch: Launcher) -> None:
    found, errors = calls(launch, code=1, FAIL="ruff")
    assert len(found) == 4
    assert errors.splitlines()[-1] == "failed: ruff check,ruff format --check"


def test_a_failed_test_is_the_exit_code(launch: Launcher) -> None:
    calls(launch, code=1, FAIL="pytest")
