"""Agreement of all ranks after each step: whether to stop or to save, and what went wrong."""

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
    """The result of a step over all ranks, and what they do now. `loss` is a sum over samples of that total `weight`.

    `oom_ranks`: how many ranks were out of memory. `odd_ranks`: how many had other gradients than DDP expected.
    """

    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    grad_norm: float = 0.0
    is_bad: bool = False
    oom_ranks: int = 0
    odd_ranks: int = 0
    stop: bool = False
    save: bool = False
    failed_writes: int = 0
    damage: bool = False

    @property
    def is_undone(self) -> bool:
        """Whether this step and those after it have changed nothing, and must be done again."""
        return bool(self.oom_ranks or self.odd_ranks)


def joined(decisions: Sequence[Decision]) -> Decision:
    """Merge decisions: the newest one, with `stop`, `save` and the largest `failed_writes` of all; empty for none."""
    if not decisions:
        return Decision()
    most = {name: max(getattr(each, name) for each in decisions) for name in ("stop", "save", "failed_writes")}
    return decisions[-1]._replace(**most)


class Agreement:
    """One decision for all ranks. The wishes of a rank are flags, sent with a sum that each step makes anyway.

    `late`: the numbers of a step arrive while the next one is computed, as on CUDA, where nothing waits for a step.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self.world = world
        self.stop = stop
        self.late = world.device.type == "cuda"
        self._arriving: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def flags(self, save: bool, failed_writes: int, damage: bool) -> list[float]:
        """This rank's flags. Only rank 0 knows when to save and what was written; `damage`: an image was replaced."""
        return [float(self.stop.asked), float(save), float(failed_writes), float(damage)]

    def decide(self, step: int, numbers: Tensor, flush: bool = False) -> list[Decision]:
        """The decisions that are known after `step`, the same on every rank. `numbers` are the fields of Decision after
        `step`, the flags among them summed over ranks.

        On CUDA results arrive one step late. With `flush` (before weights are read, saved or evaluated), or when the
        previous decision asks to stop or save, this waits for the current step too.
        """
        if not self.late:
            return [_read(step, numbers)]
        before, self._arriving = self._arriving, (step, *_leaving(numbers))
        decisions = [_arrived(*before)] if before else []
        if flush or any(each.stop or each.save for each in decisions):
            decisions.append(_arrived(*self._arriving))
            self._arriving = None
        if any(each.is_undone for each in decisions):
            self._arriving = None  # that step is done again
        return decisions

    def read(self, step: int, numbers: Sequence[float], flags: Sequence[float]) -> list[Decision]:
        """As `decide`, from numbers that are summed and on the CPU already."""
        return [_read(step, torch.tensor([*numbers, *flags]))]

    def check(self) -> None:
        """Raise StopAgreed on all ranks if any was asked to stop. Collective."""
        if self.world.sum(torch.tensor([float(self.stop.asked)])) > 0:
            raise StopAgreed

    def in_rounds(self, items: Iterable[T], rounds: int) -> Iterator[T]:
        """Iterate this rank's items with a check before each of `rounds`, the same number on all ranks."""
        iterator = iter(items)
        for _ in range(rounds):
            self.check()
            item = next(iterator, None)
            if item is not None:
                yield item
        assert next(iterator, None) is None, "a rank has more items than rounds"


def _leaving(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Numbers on their way to the host, and the event of their arrival."""
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
    loss, weight, grad_norm, is_bad, oom_ranks, odd_ranks, stop, save, failed_writes, damage = numbers.tolist()
    return Decision(
        step, loss, weight, grad_norm, is_bad > 0, int(oom_ranks), int(odd_ranks), stop > 0, save > 0,
        int(failed_writes), damage > 0,
    )  # fmt: skip
