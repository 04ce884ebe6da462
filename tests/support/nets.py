"""Small models for tests; also reachable as FILE.py:factory from the command line."""

import time

import torch
from torch import nn

THIS_FILE = __file__


def plain(num_classes: int = 3) -> nn.Module:
    """Convolutions without batch norm or dropout: its curve is the same on any number of processes (grade b)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


def with_batch_norm(num_classes: int = 3) -> nn.Module:
    """The same with batch norm and dropout (grade c)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes),
    )  # fmt: skip


class _Puts(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.put(torch.arange(1), values.flatten()[:1])


def without_a_deterministic_operation(num_classes: int = 3) -> nn.Module:
    """`plain` with torch.put, which may not repeat to the bit."""
    module = plain(num_classes)
    module[5] = nn.Sequential(nn.Flatten(), _Puts())
    return module


SLOW_SECONDS = 0.3


class _Waits(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            time.sleep(SLOW_SECONDS)
        return values


def slow_to_evaluate(num_classes: int = 3) -> nn.Module:
    """`plain` whose forward pass in evaluation mode waits."""
    module = plain(num_classes)
    module[5] = nn.Sequential(nn.Flatten(), _Waits())
    return module


def images(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    """uint8 noise, count x 3 x side x side."""
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
