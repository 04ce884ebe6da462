"""One Slurm for all tests of this folder, and jobs of tiny trainings on it."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not
from tests.support import nets
from tests.support.runs import arguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "slurm"
# A network that takes its time, so that a run can be interrupted: seconds of each forward pass in SLEEP.
SLOW_NET = """
import os, time
from torch import nn
from tests.support.nets import plain

class Slow(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        if self.training:
            time.sleep(float(os.environ.get("SLEEP", "0")))
        return self.inner(images)

def slow(num_classes=3):
    return Slow(plain(num_classes))
"""


@dataclass
class Job:
    """A submitted job, and the log it writes."""

    cluster: Cluster
    number: str
    log: Path

    @property
    def facts(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    def wait(self, state: str = "COMPLETED", seconds: float = 120) -> dict[str, str]:
        """Until the job is in that state; the log is shown if it does not get there."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        deadline = time.monotonic() + seconds
        while (facts := self.facts)["JobState"] != state:
            if facts["JobState"] in final or time.monotonic() > deadline:
                pytest.fail(f"job is {facts['JobState']}, not {state}:\n{self.text()}")
            time.sleep(0.3)
        return facts

    def wait_for(self, path: Path, seconds: float = 90) -> None:
        """Until the job has written something."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline and self.state != "FAILED", f"{path}:\n{self.text()}"
            time.sleep(0.1)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else "(no log)"


class Desk:
    """sbatch, as a user of the cluster calls it."""

    def __init__(self, cluster: Cluster, folder: Path, data: Path) -> None:
        self.cluster, self.folder, self.data = cluster, folder, data
        self.net = folder / "slow_net.py"
        self.net.write_text(SLOW_NET)
        # python of the PATH, as the contract says; the tests' support is there for the network's file alone.
        self.environment = {
            **cluster.environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NPROC_PER_NODE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip

    def train(self, run: Path, *more: object, epochs: int = 4) -> list[str]:
        """Arguments of a small training with the slow network."""
        words = arguments(self.data, run, "--set", "checkpoint.every_steps=5", *more, epochs=epochs)
        return [str(self.net) + ":slow" if word.startswith(nets.THIS_FILE) else word for word in words]

    def sbatch(self, script: str | Path, options: list[str], words: list[str], sleep: float = 0, **env: str) -> Job:
        """Submit a script, in slurm/ unless it is a path."""
        file = SCRIPTS / script
        log = self.folder / "log-%j.txt"
        environment = {**self.environment, "SLEEP": str(sleep), **env}
        command = ["sbatch", "--parsable", f"--output={log}", *options, file, *words]
        number = self.cluster.run(*command, cwd=self.folder, environment=environment).strip()
        return Job(self.cluster, number, self.folder / f"log-{number}.txt")

    def preempt(self) -> None:
        """Let a job of a higher partition take all nodes for a moment."""
        self.cluster.run(
            "sbatch",
            "--wait",
            "--nodes=3",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=true",
            environment=self.environment,
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path, shapes: Path) -> Desk:
    return Desk(cluster, tmp_path, shapes)
