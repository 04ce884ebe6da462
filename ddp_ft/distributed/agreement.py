"""What all ranks agree on after each step: whether to stop or to save, and what went wrong."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World

T = TypeVar("T")


class StopAgreed(Exception):
    """All ranks have agreed, in the same place, to stop."""


class Decision(NamedTuple):
    """What all ranks know of a step, and what they do now. `loss` is a sum over samples of that `weight`.

    `oom_ranks` ranks were out of memory: this step and those after it have changed nothing.
    """

    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    grad_norm: float = 0.0
    is_bad: bool = False
    oom_ranks: int = 0
    stop: bool = False
    save: bool = False
    failed_writes: int = 0
    damage: bool = False


def joined(decisions: Sequence[Decision]) -> Decision:
    """The newest of them, which wants what any of them wants; one that wants nothing for none."""
    if not decisions:
        return Decision()
    stop, save = any(each.stop for each in decisions), any(each.save for each in decisions)
    failed_writes = max(each.failed_writes for each in decisions)
    return decisions[-1]._replace(stop=stop, save=save, failed_writes=failed_writes)


class Agreement:
    """One decision for all ranks. What a rank wants travels as flags through a sum that there is anyway.

    `late`: the numbers of a step arrive while the next one is computed, as on CUDA, where no step is waited for.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self.world = world
        self.stop = stop
        self.late = world.device.type == "cuda"
        self._arriving: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def flags(self, save: bool, failed_writes: int, damage: bool) -> list[float]:
        """This rank's part. Rank 0 alone knows when to save and what was written; `damage`: an image was replaced."""
        return [float(self.stop.asked), float(save), float(failed_writes), float(damage)]

    def decide(self, step: int, numbers: Tensor, to_the_end: bool = False) -> list[Decision]:
        """The decisions that are known after `step`, the same everywhere. `numbers` are the fields of Decision behind
        its step, the flags summed over ranks.

        Where they are `late` it is that of the step before. This step's is waited for only if it must be known, as
        it has to be `to_the_end` of a stretch: where weights are read, or where that decision wants them to be.
        """
        if not self.late:
            return [_read(step, numbers)]
        before, self._arriving = self._arriving, (step, *_leaving(numbers))
        decisions = [_arrived(*before)] if before else []
        if to_the_end or any(each.stop or each.save for each in decisions):
            decisions.append(_arrived(*self._arriving))
            self._arriving = None
        if any(each.oom_ranks for each in decisions):
            self._arriving = None  # that step is done again
        return decisions

    def read(self, step: int, numbers: Sequence[float], flags: Sequence[float]) -> list[Decision]:
        """As `decide`, from what has been summed and has arrived already."""
        return [_read(step, torch.tensor([*numbers, *flags]))]

    def check(self) -> None:
        """Raise StopAgreed on all ranks if any was asked to stop. All ranks must come here equally often."""
        if self.world.sum(torch.tensor([float(self.stop.asked)])) > 0:
            raise StopAgreed

    def in_rounds(self, items: Iterable[T], rounds: int) -> Iterator[T]:
        """Pass this rank's items on, with a check before each of `rounds`; a rank with fewer items checks as often."""
        iterator = iter(items)
        for _ in range(rounds):
            self.check()
            item = next(iterator, None)
            if item is not None:
                yield item
        assert next(iterator, None) is None, "a rank has more items than rounds"


def _leaving(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Numbers on their way to the host, and what tells that they are there."""
    if not numbers.is_cuda:
        return numbers, None
    target = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return target, arrived


def _arrived(step: int, numbers: Tensor, arrived: torch.cuda.Event | None) -> Decision:
    if arrived is not None:
        arrived.synchronize()
    return _read(step, numbers)


def _read(step: int, numbers: Tensor) -> Decision:
    loss, weight, grad_norm, is_bad, oom_ranks, stop, save, failed_writes, damage = numbers.tolist()
    return Decision(
        step, loss, weight, grad_norm, is_bad > 0, int(oom_ranks), stop > 0, save > 0, int(failed_writes), damage > 0
    )
