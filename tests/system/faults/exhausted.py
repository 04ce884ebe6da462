"""Models that run out of memory: on one rank, at one step, in one pass, above some number of images."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import nets
from tests.system.faults.poisoned import SEEDS_OF

THIS_FILE = __file__


class _Breaks(torch.autograd.Function):
    """The values; their gradient does not fit into memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("backward")


class Exhausted(nn.Module):
    """Lets no more than `most` images through at once, on the last rank in those training steps (counted from 0); in
    the pass of that number of a step, or in any if it is None."""

    def __init__(self, most: int, number: int | None, forward: bool, steps: range = range(99)) -> None:
        super().__init__()
        rank = int(os.environ.get("WORLD_SIZE", 1)) - 1
        self.seeds = [SEEDS_OF[step][rank] for step in steps]
        self.most, self.number, self.breaks_forward = most, number, forward
        self.passes, self.seed = 0, 0

    def forward(self, values: Tensor) -> Tensor:
        seed = torch.initial_seed()
        if not self.training or seed not in self.seeds:
            return values
        self.passes, self.seed = (self.passes + 1 if seed == self.seed else 0), seed
        if len(values) <= self.most or self.number not in (None, self.passes):
            return values
        if self.breaks_forward:
            raise torch.OutOfMemoryError("forward")
        return _Breaks.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def net(exhausted: nn.Module, num_classes: int = 3, wide: int = 16_500) -> nn.Module:
    """`nets.with_batch_norm` of two of DDP's buckets, the first of which is full before the exhausted place."""
    module = nets.with_batch_norm(num_classes)
    middle = nn.Sequential(nn.Conv2d(16, wide, 1), nn.ReLU(), nn.Conv2d(wide, 16, 1))
    return nn.Sequential(*module[:3], exhausted, *module[3:7], middle, *module[7:])


def outside_of_compiling(num_classes: int = 3) -> nn.Module:
    """As `at_once`, for torch.compile, which would take what is done there for a part of the model."""
    place = Exhausted(most=2, number=1, forward=False)
    place.forward = torch.compiler.disable(place.forward)  # type: ignore[method-assign]
    return net(place, num_classes)


def at_once(num_classes: int = 3) -> nn.Module:
    """Room for 2 images in the second backward pass of a step."""
    return net(Exhausted(most=2, number=1, forward=False), num_classes)


def never(num_classes: int = 3) -> nn.Module:
    """There is memory for everything."""
    return net(nn.Identity(), num_classes)


def always(num_classes: int = 3) -> nn.Module:
    """No room for a single image."""
    return net(Exhausted(most=0, number=None, forward=True), num_classes)


def later(num_classes: int = 3) -> nn.Module:
    """Without batch norm and dropout; room for 2 images in the backward passes from step 5 on."""
    module = nets.plain(num_classes)
    return nn.Sequential(*module[:2], Exhausted(2, None, forward=False, steps=range(5, 99)), *module[2:])


def plain(num_classes: int = 3) -> nn.Module:
    """`later` with memory for everything."""
    module = nets.plain(num_classes)
    return nn.Sequential(*module[:2], nn.Identity(), *module[2:])


def heavy(num_classes: int = 3) -> nn.Module:
    """`plain`; rank 1 has once held 256 MiB beside it."""
    if os.environ.get("RANK") == "1":
        torch.ones(2**26)
    return plain(num_classes)


def in_evaluation(num_classes: int = 3) -> nn.Module:
    """`plain` that has room for 5 images when it is evaluated, and for all when it is trained."""
    return nn.Sequential(_FewToEvaluate(5), *nets.plain(num_classes))


def in_no_evaluation(num_classes: int = 3) -> nn.Module:
    """The same without room for one."""
    return nn.Sequential(_FewToEvaluate(0), *nets.plain(num_classes))


class _FewToEvaluate(nn.Module):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, values: Tensor) -> Tensor:
        if not self.training and len(values) > self.most:
            raise torch.OutOfMemoryError("evaluation")
        return values
