"""Nets for runs under faults, as FILE.py:factory: they strike, tell which images they see, and take their time."""

import json
import os
import time
from pathlib import Path

from torch import Tensor, nn

from tests.support import nets
from tests.system.faults.fault import arm_from_environment

THIS_FILE = __file__
RECORDS, PAUSE = "DDP_FT_TEST_RECORDS", "DDP_FT_TEST_PAUSE"


def armed(num_classes: int = 3) -> nn.Module:
    """Batch norm and dropout, and the fault of the environment: for processes that torchrun starts."""
    arm_from_environment()
    return nets.with_batch_norm(num_classes)


def recording(num_classes: int = 3) -> nn.Module:
    """Without batch norm and dropout; writes down the images of each training step by their mean brightness.

    One file a process in the folder $DDP_FT_TEST_RECORDS, one line a step; each takes $DDP_FT_TEST_PAUSE seconds.
    """
    layers = nets.plain(num_classes)
    assert isinstance(layers, nn.Sequential)
    return Recording(*layers)


class Recording(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        if self.training and not images.is_meta and images.any():  # black ones are trials of the net
            time.sleep(float(os.environ.get(PAUSE, "0")))
            _record([round(value, 3) for value in images.mean((1, 2, 3)).tolist()])
        return super().forward(images)


def _record(images: list[float]) -> None:
    if folder := os.environ.get(RECORDS):
        size = os.environ.get("WORLD_SIZE", "1")
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as stream:
            stream.write(json.dumps({"world_size": int(size), "time": time.time(), "images": images}) + "\n")


def read_steps(folder: Path) -> list[list[float]]:
    """The images of each step of one start, those of all its processes together, sorted."""
    files = [[json.loads(line)["images"] for line in file.read_text().splitlines()] for file in folder.iterdir()]
    return [sorted(image for share in shares for image in share) for shares in zip(*files, strict=True)]


def read_world_sizes(folder: Path) -> list[int]:
    """The numbers of processes that took steps, in the order of time, without repetitions."""
    lines = [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]
    sizes = [line["world_size"] for line in sorted(lines, key=lambda line: line["time"])]
    return [size for size, before in zip(sizes, [None, *sizes], strict=False) if size != before]
