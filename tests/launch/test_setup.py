"""setup.sh: which interpreter, when it installs, and how it mends what an earlier start left half done.

The interpreter is a stand-in that makes an environment holding itself, and notes each venv and pip call: a real
installation takes minutes and a network.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, UNSET

PYTHON = """#!/usr/bin/env bash
# {version}
case "$1 $2" in
  "-m venv")
    echo "venv {version}" >>"{log}"
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "#!$4/bin/python" >"$4/bin/pip"
    ;;
  "-m pip")
    [[ -e $(dirname "$0")/pip ]] || exit 1
    [[ $3 == --version ]] && exit
    echo "${{@: -1}}" >>"{log}"
    eval "${{PIP_DOES:-}}"
    ;;
  *python_version*) echo {version} ;;
  *version_info*2\\]*) echo "python{version}-venv" ;;
  *ensurepip*) {ensurepip} ;;
  *) exec "{real}" "$@" ;;
esac
"""
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.10", "python3", "python")


class Clone:
    """A copy of what setup.sh needs, with interpreters of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "a clone"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        shutil.copytree(LAUNCH, self.path / "launch")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(LAUNCH.parent / name, self.path)
        for name in CANDIDATES:  # as pyenv's shims: there, and of no use
            self.add(name, "#!/bin/sh\nexit 127\n")
        self.add_python("python3.11", "3.11.9")

    def add(self, name: str, text: str) -> Path:
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def add_python(self, name: str, version: str, ensurepip: str = "true") -> Path:
        text = PYTHON.format(version=version, log=self.log, real=sys.executable, ensurepip=ensurepip)
        return self.add(name, text)

    def start(self, *extras: str, **env: str) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if name not in (*UNSET, "DDP_FT_PYTHON")}
        environment = {**inherited, "PATH": f"{self.bin}:{os.environ['PATH']}", **env}
        command = [self.path / "launch" / "setup.sh", *extras]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def setup(self, *extras: str, code: int = 0, **env: str) -> str:
        """The output of a start that ends with `code`."""
        process = self.start(*extras, **env)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == code, output
        return output

    def calls(self) -> list[str]:
        """What was done since the last time: "venv VERSION", or what pip was to install."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_first_start_installs_and_the_second_is_immediate(clone: Clone) -> None:
    output = clone.setup("test")
    assert "ddp_ft[test]" in output and "3.11.9" in output
    assert clone.calls() == ["venv 3.11.9", ".[test]"]
    start = time.monotonic()
    assert clone.setup("test") == ""
    assert time.monotonic() - start < 2
    assert clone.calls() == []


def test_each_extra_has_its_stamp(clone: Clone) -> None:
    clone.setup("test")
    clone.calls()
    clone.setup("demo")
    assert clone.calls() == [".[demo]"]
    clone.setup("test,demo")
    assert clone.calls() == []


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_a_changed_file_installs_into_the_same_environment(clone: Clone, name: str) -> None:
    clone.setup("test")
    clone.calls()
    with (clone.path / name).open("a") as file:
        file.write("\n")
    clone.setup("test")
    assert clone.calls() == [".[test]"]


def test_a_failure_of_pip_is_shown_and_tried_again(clone: Clone) -> None:
    output = clone.setup("test", code=1, PIP_DOES="echo no network; exit 1")
    assert "no network" in output
    assert re.match(r"error: .*ddp_ft\[test\]", output.splitlines()[-1])
    clone.calls()
    clone.setup("test")
    assert clone.calls() == [".[test]"]


def test_an_install_that_was_killed_is_begun_anew(clone: Clone) -> None:
    clone.setup("test", code=-9, PIP_DOES="kill -9 $PPID")
    clone.calls()
    assert ".venv" in clone.setup("test")
    assert clone.calls() == ["venv 3.11.9", ".[test]"]
    assert clone.setup("test") == ""


@pytest.mark.parametrize("missing", ["bin", "bin/python", "bin/pip"])
def test_a_half_made_environment_is_made_anew(clone: Clone, missing: str) -> None:
    clone.setup("test", code=1, PIP_DOES="exit 1")
    part = clone.path / ".venv" / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    clone.calls()
    assert ".venv" in clone.setup("test")
    assert clone.calls() == ["venv 3.11.9", ".[test]"]


def test_a_moved_clone_is_set_up_anew(clone: Clone) -> None:
    clone.setup("test")
    clone.calls()
    clone.path = clone.path.rename(clone.folder / "moved")
    assert ".venv" in clone.setup("test")
    assert clone.calls() == ["venv 3.11.9", ".[test]"]


def test_the_environment_of_another_clone_is_not_cleared(clone: Clone) -> None:
    clone.setup("test")
    other = (clone.path / ".venv").rename(clone.folder / "environment")
    (clone.path / ".venv").symlink_to(other)
    for name in ("bin/pip", ".ddp_ft-test"):
        (other / name).write_text("of another clone")
    clone.calls()
    output = clone.setup("test", code=2)
    assert f".venv is a link to {other}" in output and f"DDP_FT_PYTHON={other}/bin/python" in output
    assert clone.calls() == [] and (other / "bin/pip").read_text() == "of another clone"


def test_an_environment_of_ones_own_may_be_a_link(clone: Clone) -> None:
    """As where the clone is in a home folder with a quota."""
    clone.setup("test")
    clone.calls()
    (clone.path / ".venv").rename(clone.folder / "scratch")
    (clone.path / ".venv").symlink_to(clone.folder / "scratch")
    assert clone.setup("test") == "" and clone.calls() == []
    with (clone.path / "setup.cfg").open("a") as file:
        file.write("\n")
    clone.setup("test")
    assert clone.calls() == [".[test]"]


def test_two_starts_at_once_install_once(clone: Clone) -> None:
    starts = [clone.start("test", PIP_DOES="sleep 1") for _ in range(2)]
    outputs = sorted(process.communicate(timeout=60)[0] for process in starts)
    assert [process.returncode for process in starts] == [0, 0]
    assert clone.calls() == ["venv 3.11.9", ".[test]"]
    if shutil.which("flock"):
        assert "ddp_ft[test]" not in outputs[0] and "ddp_ft[test]" in outputs[1]  # one waits, and says so


def test_the_newest_python_that_runs_is_taken(clone: Clone) -> None:
    clone.add_python("python3.10", "3.10.1")
    clone.add_python("python3.12", "3.12.2")
    clone.setup("test")
    assert clone.calls()[0] == "venv 3.12.2"


def test_the_variable_python_wins(clone: Clone) -> None:
    clone.setup("test")
    clone.calls()
    mine = str(clone.add_python("mine", "3.10.7"))
    assert "3.10.7" in clone.setup("test", PYTHON=mine)
    assert clone.calls() == ["venv 3.10.7", ".[test]"]
    assert clone.setup("test", PYTHON=mine) == ""
    assert clone.setup("test") == ""  # and is kept


def test_no_python_is_one_message(clone: Clone) -> None:
    clone.add("python3.11", "#!/bin/sh\nexit 127\n")
    assert re.match("error: .*3.10", clone.setup("test", code=2))
    assert "'/nowhere'" in clone.setup("test", code=2, PYTHON="/nowhere")
    assert not (clone.path / ".venv").exists()


def test_an_old_python_is_refused(clone: Clone) -> None:
    old = clone.add("old", "#!/bin/sh\nexit 1\n")  # what the check of the version ends with
    assert "3.10" in clone.setup("test", code=2, PYTHON=str(old))


def test_a_python_without_ensurepip_is_named_with_its_package(clone: Clone) -> None:
    clone.add_python("python3.11", "3.11", ensurepip="false")
    output = clone.setup("test", code=2)
    assert "apt install python3.11-venv" in output
    clone.add_python("python3.10", "3.10.1")
    clone.setup("test")
    assert clone.calls()[0] == "venv 3.10.1"


def test_a_given_interpreter_is_left_as_it_is(clone: Clone) -> None:
    assert sys.executable in clone.setup("test", DDP_FT_PYTHON=sys.executable)
    assert clone.calls() == [] and not (clone.path / ".venv").exists()


@pytest.mark.parametrize("extras", [[], ["test", "demo"], ["-x"], ["test]; rm"]])
def test_wrong_arguments(clone: Clone, extras: list[str]) -> None:
    clone.setup(*extras, code=2)
    assert clone.calls() == []
