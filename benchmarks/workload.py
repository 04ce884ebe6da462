"""What every contender trains: the same model on the same files in the same batches; and how its speed is measured."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.jpegs import CLASSES

if TYPE_CHECKING:
    import torch

    from ddp_ft.contracts import BuiltModel

# The first steps build kernels and fill queues. As many as ddp_ft itself leaves out of images_per_second
# (ddp_ft.training.progress.WARM_UP_STEPS; a test holds that).
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Workload:
    """`batch` is that of one process, `workers` the loader processes of one; `device` and `precision` are resolved.

    `data` has train/ and val/ with class folders, `images` files in train/. crop_min, flip, label_smoothing and the
    optimizer are ddp_ft's defaults, and everybody's.
    """

    data: str
    images: int
    model: str
    image_size: int
    batch: int
    processes: int
    epochs: int
    workers: int
    threads: int
    device: str
    precision: str
    crop_min: float = 0.6
    flip: float = 0.5
    label_smoothing: float = 0.1
    lr: float = 1e-3
    weight_decay: float = 0.05

    @property
    def global_batch(self) -> int:
        """Images per optimizer step."""
        return self.batch * self.processes

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * -(-self.images // self.global_batch)

    def write(self, file: Path) -> None:
        """As JSON, for the process of a contender."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(file: Path) -> "Workload":
        """The inverse of `write`."""
        return Workload(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Outcome:
    """What a contender's process found: images per second of the whole job, over `steps` timed steps, and notes.

    `began` and `ended` (seconds since 1970) enclose `images`, in which the CPU time of an image is taken: of all
    processes, the loader's and the launcher's among them.
    """

    images_per_second: float
    steps: int
    notes: str = ""
    began: float = 0.0
    ended: float = 0.0
    images: int = 0
    cpu_ms_per_image: float | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Clock:
    """Times training from the end of the third step to the end of the last one, whatever lies between."""

    def __init__(self, device: str, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.now = now
        self.steps = self.images = 0
        self.began = 0.0

    def tick(self, images: int) -> None:
        """A step has ended that took `images` over all processes."""
        self.steps += 1
        if self.steps > WARM_UP_STEPS:
            self.images += images
        elif self.steps == WARM_UP_STEPS:
            self._wait_for_device()
            self.began = self.now()

    def stop(self, notes: str = "") -> Outcome:
        """All steps have ended."""
        self._wait_for_device()
        seconds = self.now() - self.began
        if not self.images:
            raise ValueError(f"{self.steps} steps are too few: the first {WARM_UP_STEPS} do not count")
        ended = time.time()
        return Outcome(self.images / seconds, self.steps - WARM_UP_STEPS, notes, ended - seconds, ended, self.images)

    def _wait_for_device(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def build(workload: Workload) -> "BuiltModel":
    """The model with random weights, the same for everybody; its `preprocess` says what images it wants."""
    import torch

    from ddp_ft.models import build_model

    torch.manual_seed(0)
    return build_model(f"timm/{workload.model}", CLASSES, workload.image_size, "none")


def autocast(workload: Workload) -> Any:
    """torch's autocast in the workload's precision; nothing for fp32."""
    import contextlib

    import torch

    if workload.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(workload.device, dtype=torch.bfloat16)


def adamw(workload: Workload, module: "torch.nn.Module", fused: bool) -> "torch.optim.Optimizer":
    """AdamW over all parameters, as torch's own default chooses its kernels, or `fused`."""
    import torch

    return torch.optim.AdamW(
        module.parameters(), lr=workload.lr, weight_decay=workload.weight_decay, fused=fused or None
    )
