"""Toy input: rows of numbers, as many in each as there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Address, Batch, Kept, Sample, Source
from ddp_ft.data.batch import stacked
from ddp_ft.errors import UserError


class RowsTransform:
    """The numbers, multiplied by one that is drawn for each row, in training."""

    def __init__(self, spread: float) -> None:
        self.spread = spread

    def __call__(self, sample: Sample) -> Batch:
        factor = 1 + self.spread * (torch.rand(()) - 0.5) if self.spread else 1.0
        return {**sample, "numbers": sample["numbers"] * factor}

    def collate(self, samples: list[Batch]) -> Batch:
        return stacked(samples)

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        return batch


class RowsOnDevice:
    def __init__(self, scale: float, device: torch.device) -> None:
        self.scale = scale
        self.device = device

    def __call__(self, batch: Batch) -> Batch:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return {**moved, "numbers": moved["numbers"] / self.scale}


@dataclass(frozen=True)
class RowsProcessor:
    scale: float = 10.0
    unit: str = "apples"
    kind = "rows"

    @staticmethod
    def from_mapping(values: Mapping[str, Any], kept: Kept) -> "RowsProcessor":
        unit = kept("unit.txt").decode()
        return RowsProcessor(values["scale"], unit)

    def to_mapping(self) -> dict[str, Any]:
        return {"kind": self.kind, "scale": self.scale}

    def files(self) -> Mapping[str, bytes]:
        return {"unit.txt": self.unit.encode()}

    def configured(self, data: DataConfig) -> "RowsProcessor":
        return self

    def measure(self, data: DataConfig, source: Source) -> dict[str, Any]:
        return {}

    def fitted(self, inputs: Mapping[str, Any]) -> "RowsProcessor":
        return self

    def check(self, config: RunConfig, target_kind: str, device: torch.device) -> None:
        pass

    def pairs(self, config: RunConfig) -> bool:
        return False

    def train_transform(self, config: RunConfig) -> RowsTransform:
        return RowsTransform(0.2)

    def eval_transform(self) -> RowsTransform:
        return RowsTransform(0.0)

    def packing(self) -> None:
        return None

    def volume(self, batch: Batch) -> tuple[int, int]:
        return int(batch["numbers_length"].sum()), batch["numbers"].numel()

    def on_device(self, device: torch.device, channels_last: bool) -> RowsOnDevice:
        return RowsOnDevice(self.scale, device)

    def example(self, samples: int) -> Batch:
        rows = [torch.arange(float(2 + place % 3), device="cpu") for place in range(samples)]
        return stacked([{"numbers": row, "numbers_length": torch.tensor(len(row), device="cpu")} for row in rows])

    def viewed(self, views: str) -> NoReturn:
        raise UserError(f"--tta {views} is for images, not for rows.")

    def pixels(self, batch: Batch) -> list[Any]:
        return []

    def texts(self, batch: Batch) -> list[str]:
        return []

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        return "numbers", str(int(batch["numbers_length"][place]))

    def shape(self) -> tuple[int, ...]:
        return ()
