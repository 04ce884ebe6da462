"""Small models for tests; also reachable as FILE.py:factory from the command line."""

import os
import time
from collections.abc import Callable

import torch
from torch import nn

THIS_FILE = __file__


def plain(num_classes: int = 3) -> nn.Module:
    """Convolutions without batch norm or dropout: its curve is the same on any number of processes (grade b)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )  # fmt: skip


def of_channels(num_classes: int = 3, in_chans: int = 3) -> nn.Module:
    """The first one for images of any number of channels."""
    net = plain(num_classes)
    net[0] = nn.Conv2d(in_chans, 8, 3, stride=2)
    return net


def with_batch_norm(num_classes: int = 3) -> nn.Module:
    """The same with batch norm and dropout (grade c)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes),
    )  # fmt: skip


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.drop, self.second = nn.Dropout(0.2), nn.Conv2d(width, width, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.second(self.drop(self.norm(self.first(values)).relu()))


def with_blocks(num_classes: int = 3, width: int = 8) -> nn.Module:
    """Two equal blocks with batch norm and dropout (grade c)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=4), nn.Sequential(_Block(width), _Block(width)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )  # fmt: skip


def wide_with_blocks(num_classes: int = 3) -> nn.Module:
    """The same with 2.3 million parameters: more than one of DDP's buckets."""
    return with_blocks(num_classes, width=768)


class _NeverTheSame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = "a"

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.state += "a"  # what a compiler takes for a constant
        return values * 1.0


def never_the_same(num_classes: int = 3) -> nn.Module:
    """`plain` with a layer for which each call has to be compiled anew."""
    module = plain(num_classes)
    module[5] = nn.Sequential(nn.Flatten(), _NeverTheSame())
    return module


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


class _Dawdles(nn.Module):
    """Waits before each pass in training mode that `is_slow` names, on the last rank alone."""

    def __init__(self, is_slow: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.is_slow = is_slow

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if self.training and is_last_rank and self.is_slow(values):
            time.sleep(SLOW_SECONDS / 3)
        return values


def slow_in_contiguous_memory(num_classes: int = 3) -> nn.Module:
    """`plain`, for which the rule is contiguous memory, on a machine for which that is the wrong rule."""
    return nn.Sequential(_Dawdles(lambda images: images.is_contiguous()), *plain(num_classes))


def slow_with_many_images(num_classes: int = 3) -> nn.Module:
    """`plain`, slower by far with more than 4 images at a time."""
    return nn.Sequential(_Dawdles(lambda images: len(images) > 4), *plain(num_classes))


class _Spare(nn.Module):
    def __init__(self, num_classes: int, sometimes: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, num_classes)
        self.spare = nn.Linear(8, num_classes)
        self.sometimes = sometimes

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        seen = self.body(values).relu().mean((2, 3))
        outputs: torch.Tensor = self.head(seen)
        chosen = values[:, 0].mean((1, 2)) > values[:, 1].mean((1, 2)) + 0.1
        if self.sometimes and chosen.any():
            outputs = outputs + chosen.unsqueeze(1) * self.spare(seen)
        return outputs


def with_an_unused_layer(num_classes: int = 3) -> nn.Module:
    """A network whose forward pass never uses one of its layers."""
    return _Spare(num_classes, sometimes=False)


def with_a_layer_for_some(num_classes: int = 3) -> nn.Module:
    """The same, but for images that are more red than green, and so in some steps on some ranks."""
    return _Spare(num_classes, sometimes=True)
