"""The fixture that lets nothing leak, tried on tests that leak."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAKS = {
    "variable": ("os.environ['RANK'] = '0'", "The test leaks RANK"),
    "removed": ("del os.environ['HOME']", "The test leaks HOME"),
    "thread": ("threading.Thread(target=time.sleep, args=(4,), name='sleeper').start()", "leaks thread sleeper"),
    "group": (
        "import torch.distributed as d; d.init_process_group('gloo', store=d.HashStore(), rank=0, world_size=1)",
        "leaks a process group",
    ),
    "nothing": ("threading.Thread(target=time.sleep, args=(0.1,)).start()", ""),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> str:
    """What pytest prints of one file for each leak, with the reasons of those that failed."""
    folder = tmp_path_factory.mktemp("leaks")
    after = "def test_after(): assert 'RANK' not in os.environ and 'HOME' in os.environ"
    for kind, (code, _) in LEAKS.items():
        (folder / f"test_{kind}.py").write_text(f"import os, threading, time\ndef test_it(): {code}\n{after}\n")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.conftest", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environment.pop("RANK", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.xdist_group("leaks")  # they share one run of pytest
@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_fails_its_own_test_and_not_the_next(outcome: str, kind: str) -> None:
    _, said = LEAKS[kind]
    # The test passes and its teardown fails: both are told.
    verdicts = re.findall(rf"test_{kind}\.py::(\w+) (PASSED|ERROR|FAILED)", outcome)
    error = [("test_it", "ERROR")] if said else []
    assert verdicts == [("test_it", "PASSED"), *error, ("test_after", "PASSED")], outcome
    assert not said or said in outcome
