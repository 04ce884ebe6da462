"""The process group, made from the launcher's environment, and the few collectives that the package needs."""

import itertools
import json
import os
import pickle
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (  # type: ignore[attr-defined]
    DebugLevel,
    PrefixStore,
    Store,
    get_debug_level,
    set_debug_level,
)
from torch.distributed.rendezvous import rendezvous

from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.errors import UserError, one_line

T = TypeVar("T")

# The longest pause between two looks for the result of rank 0's work, in seconds.
LONGEST_PAUSE = 0.1

# How long a name may be unknown, in seconds: name servers of large machines are at times not there for a moment.
NAME_SECONDS = 30.0

# From how many bytes on `World.from_main` sends an array from rank to rank instead of through the store.
LARGE_ARRAY = 1 << 20


class PeerFailedError(RuntimeError):
    """This rank has to end because another one has failed, which reports the reason."""


# Outlives the process group: a failing rank looks here last, whether it is the one to report.
failure_store: Store | None = None  # None while there is no process group


@dataclass(frozen=True)
class World:
    """This rank among all. With a single process every collective does nothing."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: Store | None = None  # None without a process group
    calls: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def from_main(self, work: Callable[[], T]) -> T:
        """Return on every rank what `work` returns on rank 0. The others wait outside collectives, so it may take long.

        A UserError of rank 0 is raised on all ranks. The result is pickled and sent through the store; large arrays in
        it are broadcast.
        """
        if self.size == 1 or self.store is None:
            return work()
        # All ranks make the same calls in the same order, so a count of one's own names the call.
        name = f"from_main/{next(self.calls)}"
        if not self.is_main:
            value, error = _received(_passed_on(self.store, name))
        else:
            value = error = None
            try:
                value = work()
            except UserError as failure:
                error = failure
            message, arrays = _packed((value, error))
            _passed_on(self.store, name, message)
            for array in arrays:
                dist.broadcast(array, src=0)
        if error is not None:
            raise error
        return cast(T, value)

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest of each over ranks, which all have the same names; on the CPU, whatever the device."""
        if self.size == 1:
            return dict(values)
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return dict(zip(values, numbers.tolist(), strict=True))

    def slowest(self, seconds: float) -> float:
        """The largest of all ranks' values, the same number on each."""
        return self.largest({"": seconds})[""]

    def gather(self, value: T) -> list[T] | None:
        """On rank 0 the `value` of each rank, in their order; None elsewhere."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast_module(self, module: nn.Module) -> None:
        """Copy the parameters and buffers of rank 0 to every rank."""
        if self.size > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._broadcast_values(tensor.detach())

    def _broadcast_values(self, tensor: Tensor) -> None:
        """NCCL refuses a transposed tensor, and gloo sends and writes as many bytes of an expanded one as if it had
        memory for each element."""
        own = tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
        sent = own.contiguous()
        dist.broadcast(sent, src=0)
        if sent.data_ptr() != own.data_ptr():
            own.copy_(sent)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


@dataclass(frozen=True)
class Machine:
    """The processes of a job as this one sees them, how they were launched, and what may ask them to stop."""

    world: World
    launch: Launch
    stop: StopRequest = field(default_factory=StopRequest)


def _packed(result: Any) -> tuple[bytes, list[Tensor]]:
    """The message for the store, and the large arrays (uint8) that it leaves out: the store is one process, from which
    all ranks would fetch 50 MB for a million images."""
    arrays: list[Tensor] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= LARGE_ARRAY:
            arrays.append(torch.frombuffer(bytearray(raw), dtype=torch.uint8))  # a copy: torch needs writable memory
        return raw.nbytes < LARGE_ARRAY

    pickled = pickle.dumps(result, protocol=5, buffer_callback=stays_inside)
    return pickle.dumps((pickled, [len(array) for array in arrays])), arrays


def _received(message: bytes) -> Any:
    pickled, sizes = pickle.loads(message)
    arrays = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    for array in arrays:
        dist.broadcast(array, src=0)
    return pickle.loads(pickled, buffers=[array.numpy() for array in arrays])


def _passed_on(store: Store, name: str, message: bytes | None = None) -> bytes:
    """Rank 0's message, on every rank. The store is torchrun's: ranks that outlive it, to save, ask their group."""
    try:
        if message is not None:
            store.set(name, message)  # type: ignore[arg-type]  # takes bytes too
            store.check([name])  # raises if it is gone, unlike `set`, which waits for no answer
            return message
        _wait_for(store, name)
        return store.get(name)
    except dist.DistNetworkError:
        held = [message]
        dist.broadcast_object_list(held, src=0)
        assert held[0] is not None
        return held[0]


def _wait_for(store: Store, name: str) -> None:
    # Not by store.wait, in which no signal is handled, and which waits for a failed rank 0 until torchrun's timeout.
    pause = 0.001
    while not store.check([name]):
        if has_failure():
            raise PeerFailedError("another rank failed")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def has_failure() -> bool:
    """Whether some rank of the job has failed, as far as the store is there to know."""
    with suppress(dist.DistNetworkError):
        return failure_store is not None and bool(failure_store.check(["rank"]))
    return False


def await_name(host: str, seconds: float = NAME_SECONDS) -> None:
    """UserError if this machine does not know the host within so many seconds.

    torch asks for half an hour, prints a trace each time, and no signal ends it.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > end:
                hint = "Expected the name or address of the machine with rank 0, as every machine of the job knows it."
                raise UserError(f"MASTER_ADDR={host}: this machine does not know it ({error}).", hint) from None
        time.sleep(1)


def _meet(launch: Launch, timeout: timedelta) -> tuple[Store, int, int]:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    await_name(host)
    try:
        met: tuple[Store, int, int] = next(rendezvous("env://", launch.rank, launch.world_size, timeout=timeout))
    except dist.DistError as error:  # a port that another program has, peers that do not come
        hint = "Start with torchrun, which finds a free port, or choose another one. All ranks must reach it."
        raise UserError(f"Rank {launch.rank} cannot meet others at {host}:{port}: {one_line(error)}", hint) from None
    return met


@contextmanager
def connect(launch: Launch, device: torch.device, timeout_minutes: float) -> Iterator[World]:
    """The world of this process. Its process group is destroyed at the end of the block; on CUDA not if that fails.

    NCCL for CUDA tensors, gloo for CPU tensors (also for the small objects of a GPU run, which thus never wait for the
    device). `timeout_minutes` bounds every collective.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not launch.distributed:
        yield World(0, 1, 0, device)
        return
    timeout = timedelta(minutes=timeout_minutes)
    agents_store, rank, size = _meet(launch, timeout)
    store = _store_of_this_round(agents_store, rank, size, timeout)
    _lower_debug_level(rank)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    global failure_store
    failure_store = PrefixStore("failure", store)
    try:
        yield World(rank, size, launch.local_rank, device, PrefixStore("ddp_ft", store))
    except BaseException:
        # Before the group is destroyed, which makes the other ranks fail too, with useless messages.
        claim_failure(rank)
        # NCCL would first wait, for ever, for sums in which other ranks take no part any more.
        if device.type != "cuda":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _lower_debug_level(rank: int) -> None:
    """Without TORCH_DISTRIBUTED_DEBUG=DETAIL: the process group that it wraps ends DDP's constructor by a segmentation
    fault (torch 2.14), also outside of this package."""
    if get_debug_level() == DebugLevel.DETAIL:
        set_debug_level(DebugLevel.INFO)
        if rank == 0:
            text = "Warning: TORCH_DISTRIBUTED_DEBUG=DETAIL is taken for INFO, since torch's DDP crashes with it."
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def _store_of_this_round(store: Store, rank: int, size: int, timeout: timedelta) -> Store:
    """A part of the store that earlier ranks have not written to.

    When agents join or leave, torchrun starts all ranks anew on the same store, without the number of the attempt, so
    they would read the answers and addresses of their dead predecessors. Each rank writes a random word, and rank 0
    names the round by all words that it sees, again and again until every rank has confirmed this very round.
    """
    round_ = PrefixStore("round", store)
    word = secrets.token_hex(8)
    round_.set(f"word/{rank}", word)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        name = _name_round(round_, word, size) if rank == 0 else _join_round(round_, word, rank)
        if name:
            return PrefixStore(name, store)
        time.sleep(0.01)
    raise RuntimeError(f"Not all of {size} ranks have come within {timeout}.")


def _name_round(store: Store, name: str, size: int) -> str:
    """On rank 0: the round's name, its own word, once all have confirmed it; else empty."""
    words = [f"word/{rank}" for rank in range(size)]
    if store.check(words):
        store.set("named", json.dumps([store.get(word).decode() for word in words]))
    return name if all(_holds(store, f"confirmed/{rank}", name) for rank in range(1, size)) else ""


def _join_round(store: Store, word: str, rank: int) -> str:
    """On other ranks: the name of a round that has this rank's word; else empty."""
    words = json.loads(store.get("named")) if store.check(["named"]) else []
    if words[rank : rank + 1] != [word]:
        return ""
    store.set(f"confirmed/{rank}", words[0])
    return str(words[0])


def _holds(store: Store, key: str, value: str) -> bool:
    held: bool = store.check([key]) and store.get(key).decode() == value
    return held


def claim_failure(rank: int) -> bool:
    """Whether this rank is the first of the job that failed, which reports the reason to the user.

    Once the store is gone with torchrun it is rank 0.
    """
    assert failure_store is not None
    try:
        first: bytes = failure_store.compare_set("rank", "", str(rank))
    except dist.DistNetworkError:
        return rank == 0
    return int(first) == rank
