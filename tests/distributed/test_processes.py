"""How many processes and threads there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_ft.distributed.processes import choose_processes, words_ask_for_cpu
from ddp_ft.errors import UserError

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists four."""
    file = tmp_path / "nvidia-smi"
    file.write_text("#!/bin/sh\nfor n in 0 1 2 3; do echo \"GPU $n: H200\"; echo '  MIG 1g.18gb'; done\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("visible", "on_cpu", "wanted", "processes"),
    [
        (None, False, None, 4), ("2,3", False, None, 2), ("2", False, None, 1), ("0,1,2,3,4,5", False, None, 4),
        ("0,-1,2", False, None, 1), ("GPU-0,GPU-1", False, None, 2), ("", False, None, min(CORES, 4)),
        ("-1", False, None, min(CORES, 4)), (None, True, None, min(CORES, 4)), (None, False, 7, 7),
    ],
)  # fmt: skip
def test_processes_and_threads(visible: str | None, on_cpu: bool, wanted: int | None, processes: int) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_processes(on_cpu, environ, wanted) == (processes, max(1, CORES // processes))
    assert choose_processes(on_cpu, {**environ, "OMP_NUM_THREADS": "5"}, wanted) == (processes, 5)


def test_affinity_counts_and_not_the_machine() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from ddp_ft.distributed.processes import choose_processes; print(choose_processes(True, {}))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "(1, 1)"


def test_threads_that_are_no_number() -> None:
    with pytest.raises(UserError, match="OMP_NUM_THREADS='all'"):
        choose_processes(True, {"OMP_NUM_THREADS": "all"})


def test_which_words_ask_for_the_cpu() -> None:
    for words in (["--device", "cpu"], ["--device=cpu"], ["--set", "compute.device=cpu"], ["--set=compute.device=cpu"]):
        assert words_ask_for_cpu(["--data", "x", *words])
    assert not words_ask_for_cpu(["--data", "cpu", "--run-dir", "--device=cpux"])
