"""What the checks share: the device, images, and a training that many of them look at."""

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import nets
from tests.support.commands import Command
from tests.support.images import SHAPES, draw_shape
from tests.support.runs import call_on
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, make_store

# Seconds of one command; the slowest compiles.
COMMAND_SECONDS = 100.0
TRAIN, VAL = 96, 24


@dataclass(frozen=True)
class Machine:
    """Where the checks compute, and on what."""

    device: str
    images: Path
    smoke: bool

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def gpus(self) -> int:
        return torch.cuda.device_count() if self.is_cuda else 0

    def options(self, run: Path, *more: object, net: str = "with_batch_norm") -> list[object]:
        """A training of 2 epochs of 6 steps. Later options override these."""
        base = ["--data", self.images, "--model", f"{nets.THIS_FILE}:{net}", "--weights", "none", "--recipe", "full"]
        sizes = ["--image-size", 64, "--batch-size", 16, "--epochs", 2, "--lr", 0.01, "--workers", 2]
        logs = ["--set", "log.every_steps=1", "--set", "log.pictures=false", "--set", "log.report=false"]
        return [*base, *sizes, *logs, "--device", self.device, "--run-dir", run, *more]

    def environment(self, options: Sequence[object] = ()) -> dict[str, str]:
        """What a process without a launcher needs to use one GPU only, and not DataParallel on all; and what fp32 needs
        to be that on a GPU, and not TF32 with its 10 bits, for losses that are compared."""
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        exact = {"NVIDIA_TF32_OVERRIDE": "0"} if "fp32" in options else {}
        return {"CUDA_VISIBLE_DEVICES": first, **exact} if self.is_cuda else {}

    def train(self, run: Path, *more: object, net: str = "with_batch_norm") -> str:
        """`python -m ddp_ft.train` in a process of its own, on one GPU; what it printed. It must end well."""
        return command("ddp_ft.train", *self.options(run, *more, net=net), env=self.environment(more))

    def train_on(self, world_size: int, run: Path, *more: object, net: str = "with_batch_norm") -> str:
        """That many ranks in a process group: NCCL on as many GPUs; gloo in rehearsal. What rank 0 printed."""
        self.need(world_size)
        exact = {name: value for name, value in self.environment(more).items() if name != "CUDA_VISIBLE_DEVICES"}
        with mock.patch.dict(os.environ, exact):
            return call_on(world_size, "ddp_ft.train", *self.options(run, *more, net=net))

    def job(self, run: Path, *more: object, ranks: int = 0, fault: Fault | None = None) -> ForkedJob:
        """A training in which that fault strikes, as a process without a launcher or as ranks of a group."""
        self.need(ranks)
        words = [str(word) for word in self.options(run, *more)]
        environment = self.environment(more) if not ranks else {}
        store = make_store() if ranks else None
        return ForkedJob(ranks or 1, words, {**environment, **(fault.environment() if fault else {})}, store=store)

    def need(self, gpus: int) -> None:
        """Skip the check where there are fewer GPUs."""
        if self.is_cuda and gpus > self.gpus:
            pytest.skip(f"needs {gpus} GPUs, this machine has {self.gpus}")

    def need_cuda(self, what: str) -> None:
        """Skip the check on a CPU, which has no such thing."""
        if not self.is_cuda:
            pytest.skip(f"needs CUDA: {what}")


def command(module: str, *words: object, env: dict[str, str] | None = None) -> str:
    """What `python -m MODULE WORDS` prints; it must end with 0. `env` is laid over the environment."""
    process = Command(module, words, {**os.environ, **(env or {})}, merged=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(COMMAND_SECONDS)
    ended = (
        f"exit code {process.returncode}" if process.poll() is not None else f"not done after {COMMAND_SECONDS:.0f} s"
    )
    process.kill()
    assert ended == "exit code 0", f"{ended}: {process.output()[-2000:]}"
    return process.output()


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """By the options of `tests/gpu/lines.py`; without them CUDA, and a skip where there is none."""
    device = pytestconfig.getoption("device", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    smoke = pytestconfig.getoption("smoke", False)
    return Machine(device, write_jpegs(tmp_path_factory.mktemp("jpegs")), smoke)


@pytest.fixture(scope="session")
def trained(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in the precision that the device gives, for what is done with a run."""
    run = tmp_path_factory.mktemp("trained") / "run"
    machine.train(run)
    return run


def write_jpegs(folder: Path) -> Path:
    """Drawn shapes of 160 x 120, which any model tells apart: train/CLASS and val/CLASS."""
    generator = np.random.default_rng(0)
    for number in range(TRAIN + VAL):
        label = number % len(SHAPES)
        file = folder / ("train" if number < TRAIN else "val") / SHAPES[label] / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_shape(label, (160, 120), generator)).save(file, quality=90)
    return folder
