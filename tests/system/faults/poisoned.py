"""Models whose loss is not finite at certain steps, whatever start of the run comes to them."""

import resource

import torch
from torch import Tensor, nn

from ddp_ft.data.rng import derive_seed
from tests.support import nets

THIS_FILE = __file__
SEEDS_OF = {step: [derive_seed(0, step, rank) for rank in range(3)] for step in range(100)}


class Poisoned(nn.Module):
    """Gives NaN at the training steps `bad` (counted from 0) on that rank; it knows them by the seed of the step."""

    def __init__(self, module: nn.Module, bad: range, rank: int) -> None:
        super().__init__()
        self.module = module
        self.seeds = [SEEDS_OF[step][rank] for step in bad]

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.module(images)
        return outputs * torch.nan if self.training and torch.initial_seed() in self.seeds else outputs


def twice(num_classes: int = 3) -> nn.Module:
    """Without batch norm and dropout; steps 3 and 4, on rank 0."""
    return Poisoned(nets.plain(num_classes), range(3, 5), rank=0)


def once_on_the_last_rank(num_classes: int = 3) -> nn.Module:
    """With batch norm and dropout; step 3, on rank 1 of 2 alone."""
    return Poisoned(nets.with_batch_norm(num_classes), range(3, 4), rank=1)


def always(num_classes: int = 3) -> nn.Module:
    """Every step from step 2 on."""
    return Poisoned(nets.plain(num_classes), range(2, 100), rank=0)


class Squeezing(nn.Module):
    """Lets files grow no larger than `largest` bytes within the training steps `narrow` (counted from 0): a disk that
    is full for a while."""

    def __init__(self, module: nn.Module, narrow: range, largest: int = 4096) -> None:
        super().__init__()
        self.module = module
        self.seeds = [SEEDS_OF[step][0] for step in narrow]
        self.largest = largest

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            limit = self.largest if torch.initial_seed() in self.seeds else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        outputs: Tensor = self.module(images)
        return outputs


def full_for_a_while(num_classes: int = 3) -> nn.Module:
    """In steps 2 to 5."""
    return Squeezing(nets.plain(num_classes), range(2, 6))


def full_from_then_on(num_classes: int = 3) -> nn.Module:
    """From step 2 on."""
    return Squeezing(nets.plain(num_classes), range(2, 100))
