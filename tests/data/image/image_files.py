"""Small real image files, and a source that needs none."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddp_ft.contracts import BadSample, Batch


def save_image(file: Path, seed: int = 0, size: tuple[int, int] = (20, 16)) -> Path:
    """A smooth coloured image that differs with the seed, in the format that its suffix says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).save(file)
    return file


def save_classes(folder: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            save_image(folder / name / f"{k:03}{suffix}", seed=1000 * number + k)
    return folder


class NumberSource:
    """An image of 12 x 10 pixels that differs with the index; the indices in `bad` are damaged."""

    kind = "image"

    def __init__(self, size: int, bad: Iterable[int] = ()) -> None:
        self.size = size
        self.bad = frozenset(bad)

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"number/{index}"

    def read(self, index: int) -> Batch:
        if index in self.bad:
            raise BadSample(f"{self.name(index)}: torn in two")
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 12, 10), dtype=torch.uint8, generator=generator)
        return {"image": image, "target": torch.tensor(index % 7)}
