"""The module as training calls it, on one process or many: DistributedDataParallel, and its sums of gradients."""

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ddp_ft.distributed.world import World

if TYPE_CHECKING:
    from ddp_ft.contracts import Batch, Call

T = TypeVar("T")

# torch 2.15 renamed the option and warns about the old name.
_NEW_NAME, _OLD_NAME = "forward_sync_buffers", "broadcast_buffers"
_HAS_NEW_NAME = _NEW_NAME in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {_NEW_NAME if _HAS_NEW_NAME else _OLD_NAME: False}

# The number format in which gradients are sent; None: their own.
WIRE_DTYPES = {"none": None, "bf16": torch.bfloat16}


def replicate(
    trainee: "Trainee", world: World, distributed: bool, compression: str = "none", searches: bool = False
) -> nn.Module:
    """The module as training calls it, with a prepared batch: a `Replica` under torchrun, a DataParallel if one process
    sees several GPUs, else the trainee itself. `compression` is one of WIRE_DTYPES, `searches` as in `Replica`."""
    if distributed:
        return Replica(trainee, WIRE_DTYPES[compression], searches)
    if world.device.type == "cuda" and torch.cuda.device_count() > 1:
        return Threads(trainee)
    return trainee


class Threads(DataParallel[Any]):
    """DataParallel whose threads compute in the caller's number format."""

    def parallel_apply(self, replicas: Sequence[Any], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        """Run each replica on its part of the batch."""
        return super().parallel_apply([in_this_autocast(each, "cuda") for each in replicas], inputs, kwargs)


def in_this_autocast(function: Callable[..., T], device_type: str) -> Callable[..., T]:
    """Return the function in the number format of autocast here, whatever thread calls it: DataParallel tells its
    threads that autocast is on, but not of which format, and their own is fp16."""
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)

    def called(*args: Any, **options: Any) -> T:
        with torch.autocast(device_type, dtype=dtype, enabled=enabled):
            return function(*args, **options)

    return called


class Replica(DistributedDataParallel):
    """DDP that sums (not averages) gradients, and lets a rank without a gradient (out of memory) join the sums.

    What the trainee names as unused is left out of the sums. With `searches` nothing is: DDP looks in each step for the
    parameters that got no gradient, and those that got one on no rank have none, as in one process. That costs a walk
    through the graph, and another sum that the host waits for.
    """

    def __init__(self, trainee: "Trainee", wire: torch.dtype | None = None, searches: bool = False) -> None:
        # Buffers are not broadcast: batch norm's statistics are averaged when they are needed, which loses no rank's
        # samples, and a rank without a batch would hang in that broadcast. Not at the beginning either: all ranks have
        # the same weights by now, and after a restart each has its own statistics.
        # No device_ids on CUDA either, which torch allows: batches are on the device, and need not be looked through
        # and moved. With ids a call without arguments, as below, ends in an IndexError.
        unused = set() if searches else trainee.unused
        # The name by which DDP looks for it on the module that it wraps.
        trainee._ddp_params_and_buffers_to_ignore = [f"module.{name}" for name in unused]  # type: ignore[assignment]
        super().__init__(
            trainee, gradient_as_bucket_view=True, init_sync=False, find_unused_parameters=searches, **KEEP_BUFFERS
        )
        named = dict(trainee.module.named_parameters())
        learning = [parameter for name, parameter in named.items() if parameter.requires_grad and name not in unused]
        self._left_out = [named[name] for name in unused]
        self.sums = BucketSums(wire, searched=len(learning) if searches else 0)
        self.register_comm_hook(None, self.sums.reduce)
        self._settle_buckets()

    def _settle_buckets(self) -> None:
        """Bring DDP's buckets into their final layout before the first step.

        DDP rebuilds its buckets once, at the second forward pass, in the order in which the first backward pass made
        the gradients ready, and the layout decides in which order ranks are summed: from three ranks on, a restart
        changed bits. After these backward passes, which cost a reduction each and no forward pass, the layout follows
        from the parameters alone, and a step has one collective for each bucket and no others.
        """
        for _ in range(2):
            self.sums.forget()
            # Here all are used, of which torch warns once, in C++ and so past Python's filters.
            with _without_stderr() if self.sums.searched else nullcontext():
                self().backward()
            self.zero_grad(set_to_none=True)

    def went_as_expected(self) -> bool:
        """Whether a step's passes, of which this rank has done all, gave a gradient to all parameters that are summed
        and to none that is left out. If not, `sums.join` lets the other ranks finish; this replica is of no use then.
        """
        return self.sums.are_complete and all(parameter.grad is None for parameter in self._left_out)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Within the block nothing that this process writes to its standard error arrives."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Trainee(nn.Module):
    """A module together with its call, for DDP to wrap. `unused`: the names of its parameters that get no gradient."""

    def __init__(self, module: nn.Module, call: "Call", unused: Collection[str] = ()) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.unused = frozenset(unused)

    def forward(self, batch: "Batch | None" = None) -> Any:
        """The module's outputs for a prepared batch; without one the sum of all parameters that learn."""
        if batch is None:
            return torch.stack([p.sum().float() for p in self.parameters() if p.requires_grad]).sum()
        return self.call(self.module, batch)


class BucketSums:
    """The sums of DDP's buckets over ranks, in the order of the buckets: DDP's communication hook.

    `wire` is the number format in which gradients are sent; None: their own. `searched`: if DDP looks for parameters
    without a gradient, how many it has; it sums a mark for each after the buckets.
    """

    def __init__(self, wire: torch.dtype | None, searched: int = 0) -> None:
        self.wire = wire
        self.searched = searched
        self._buffers: dict[int, Tensor] = {}
        self._begun = 0

    def forget(self) -> None:
        """Expect other buckets from here on."""
        self._buffers, self._begun = {}, 0

    @property
    def are_complete(self) -> bool:
        """Whether this rank has begun all sums of the step."""
        return self._begun == len(self._buffers)

    def begin(self) -> None:
        """Call this at the beginning of each step."""
        self._begun = 0

    def reduce(self, _state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Begin the sum of one bucket."""
        buffer = bucket.buffer()
        self._buffers[bucket.index()] = buffer
        sent = buffer if self.wire is None else buffer.to(self.wire)  # which may run out of memory
        future = dist.all_reduce(sent, async_op=True).get_future()
        self._begun += 1
        return future.then(lambda arrived: _received(arrived.value()[0], buffer))

    def join(self) -> None:
        """Take part in those sums of the step that this rank has not begun, since the other ranks wait for it.

        The result is of no use on any rank. It takes no memory: the buckets themselves are sent.
        """
        marks = 0 if self.are_complete else self.searched  # they follow the last bucket at once
        for index in range(self._begun, len(self._buffers)):
            buffer = self._buffers[index]
            sent = buffer if self.wire is None else buffer.view(self.wire)[: buffer.numel()]
            dist.all_reduce(sent.zero_())
        if marks:
            dist.all_reduce(torch.zeros(marks, dtype=torch.int32, device=self._buffers[0].device))
        self._begun = len(self._buffers)


def _received(arrived: Tensor, buffer: Tensor) -> Tensor:
    return buffer if arrived is buffer or arrived.data_ptr() == buffer.data_ptr() else buffer.copy_(arrived)
