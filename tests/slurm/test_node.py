"""A node's task of a batch job: its signals, and its end."""

import signal
from pathlib import Path

import pytest

from ddp_ft.slurm.node import noting, settled


def test_signals_become_lines_of_the_stop_file(tmp_path: Path) -> None:
    stop_file = tmp_path / "run" / "stop"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        noting(stop_file)(number)
    assert stop_file.read_text() == "step SIGTERM\nstep SIGHUP\nstep SIGUSR1\n"
    assert settled(3, stop_file) == 0, "a node that was asked to stop is no failed node"


@pytest.mark.parametrize(("code", "noted"), [(0, ""), (3, "crash\n")])
def test_a_failure_is_noted_and_keeps_its_code(tmp_path: Path, code: int, noted: str) -> None:
    stop_file = tmp_path / "stop"
    assert settled(code, stop_file) == code
    assert (stop_file.read_text() if stop_file.exists() else "") == noted
