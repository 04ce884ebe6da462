"""Toy models: one network that looks at each number of a row and at the mean of the row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch
from ddp_ft.errors import UserError
from ddp_ft.models.libraries.base import no_files, numbers_alone
from tests.system.seam.rows_processor import RowsProcessor

ARGUMENTS: tuple[str, ...] = ()
DROPOUT: tuple[str, ...] = ()
DROP_PATH: tuple[str, ...] = ()
CHANNELS: tuple[str, ...] = ()

is_argument = numbers_alone
files = no_files


class Net(nn.Module):
    """Takes its input by name, as language models do, and gives a mapping."""

    def __init__(self, num_classes: int, depth: int = 1) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, *, numbers: Tensor, mask: Tensor) -> dict[str, Tensor]:
        mean = (numbers * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        both = torch.stack([numbers, mean.expand_as(numbers)], dim=2)
        return {"logits": self.head(torch.relu(self.hidden(both)))}


def names() -> list[str]:
    return ["net"]


def knows(name: str) -> bool:
    return name == "net"


def spec_name(name: str, unit: str = "sample") -> str:
    return name


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    return {"num_classes": outputs}


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return Net(**arguments)


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> RowsProcessor:
    return RowsProcessor()


def call(module: nn.Module, batch: Batch) -> Tensor:
    places = torch.arange(batch["numbers"].shape[1], device=batch["numbers"].device)
    mask = (places < batch["numbers_length"].unsqueeze(1)).float()
    logits: Tensor = module(numbers=batch["numbers"], mask=mask)["logits"]
    return logits


def pretrained(name: str) -> dict[str, Tensor]:
    raise UserError(f"{name} has no pretrained weights.", "Use --weights none.")


def input_sizes(name: str) -> dict[str, list[int]]:
    return {}


def parameters(name: str, may_build: bool) -> int | None:
    return None


def cache_folder() -> str:
    return ""


def adapt(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state
