"""A stand-in for the interpreter that the scripts start: it notes what it was called with, and does no more."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# What a test must not inherit from the machine it runs on.
UNSET = (
    "NPROC_PER_NODE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "RDZV_ID",
    "SLURM_JOB_ID",
    "MAX_RESTARTS",
    "PYTHON",
)
RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"{folder}/arguments"
env -0 >"{folder}/environment"
"""


@dataclass(frozen=True)
class Call:
    """A finished script, and what it had started at last."""

    process: "subprocess.CompletedProcess[str]"
    arguments: list[str]
    environment: dict[str, str]


class Launcher:
    """Runs scripts of launch/ with recorders on the PATH instead of python and nvidia-smi."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.add("recorder", RECORDER.format(folder=folder))
        self.add("nvidia-smi", "#!/bin/sh\nexit 9\n")  # as where the driver is not loaded

    def add(self, name: str, text: str) -> Path:
        """Put an executable on the scripts' PATH."""
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def __call__(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> Call:
        inherited = {name: value for name, value in os.environ.items() if name not in UNSET}
        environment = {**inherited, "DDP_FT_PYTHON": str(self.bin / "recorder"), **env}
        environment["PATH"] = f"{self.bin}{os.pathsep}{environment['PATH']}"
        process = subprocess.run(
            [LAUNCH / script, *args],
            env=environment,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Call(process, self._read("arguments"), dict(line.split("=", 1) for line in self._read("environment")))

    def _read(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().split("\0")[:-1] if file.exists() else []


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    """launch(script, *args, cwd=None, **env) -> Call."""
    return Launcher(tmp_path)
