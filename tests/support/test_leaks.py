"""The fixture that lets nothing leak, tried on tests that leak."""

import os
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
    "nothing": ("threading.Thread(target=time.sleep, args=(0.1,)).start()", "2 passed"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_fails_its_own_test_and_not_the_next(kind: str, tmp_path: Path) -> None:
    code, expected = LEAKS[kind]
    after = "def test_after(): assert 'RANK' not in os.environ and 'HOME' in os.environ"
    (tmp_path / "test_it.py").write_text(f"import os, threading, time\ndef test_it(): {code}\n{after}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "test_it.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment.pop("RANK", None)
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert expected in outcome.stdout
    # The test passes and its teardown fails: both are counted.
    assert outcome.stdout.splitlines()[-1].startswith("2 passed in" if kind == "nothing" else "2 passed, 1 error in")
