"""Requests to stop, and how the ranks agree on them: a flag until all of them act on it at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddp_ft.distributed.world import World

T = TypeVar("T")

# Not SIGUSR1: NCCL uses it itself (github.com/facebookincubator/submitit/pull/1697).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# A file whose appearance asks for a stop; how a batch script tells the ranks, as torchrun passes no signal on without
# ending the run.
STOP_FILE_VARIABLE = "DDP_FT_STOP_FILE"
# How often the stop files are looked for, in seconds: each look may be a question to a network file system.
LOOK_EVERY = 1.0
# How long the main thread has to end by itself after a second Ctrl-C.
INTERRUPT_GRACE = 1.0
INTERRUPTED = 130  # as shells report an interrupt
END = b"\0"  # among the numbers of signals: the block is left


# A forked loader worker that is hit by Ctrl-C before it ignores it must not write into its parent's socket.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopAgreed(Exception):
    """All ranks have agreed, in the same place, to stop."""


class CutShort(BaseException):
    """A stop signal came within StopRequest.cutting_short. Libraries that catch every Exception let it through."""


class StopRequest:
    """Whether this process was asked to stop: by a signal, by one of `files`, or because its time is nearly up.

    Only the process that `looks` at files sees them. `deadline` is in seconds since 1970; None: there is none.
    """

    def __init__(self, files: Sequence[Path] = (), looks: bool = True) -> None:
        self.reason = ""
        self.files = tuple(files) if looks else ()
        self.deadline: float | None = None
        self._looked = -LOOK_EVERY
        self._interrupts = 0
        self._cuts_short = False

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        if not self.reason and time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            self.reason = next((f"the file {file}" for file in self.files if file.exists()), "")
            if self.deadline is not None and time.time() >= self.deadline:
                self.reason = "the end of the job's time"
        return bool(self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt  # a second Ctrl-C leaves at once
        self.reason = self.reason or signal.Signals(number).name
        if self._cuts_short:
            self._cuts_short = False
            raise CutShort

    @contextmanager
    def cutting_short(self) -> Iterator[None]:
        """Raise CutShort within the block as soon as a signal asks to stop, or at once if a stop was asked for."""
        self._cuts_short = True
        try:
            if self.asked:
                raise CutShort
            yield
        finally:
            self._cuts_short = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take the stop signals for the time of the block."""
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            with _leaving_at_a_second_interrupt():
                yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _leaving_at_a_second_interrupt() -> Iterator[None]:
    """End the process when SIGINT came twice and the main thread, blocked in a collective, cannot see to it.

    Python runs handlers between two of its own instructions only, but writes the number of each signal to a socket at
    once; a thread reads them there.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_count_interrupts, args=(reader,), name="second Ctrl-C", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.send(END)  # closing would not do: forked loader workers have the socket too
        thread.join()
        writer.close()
        reader.close()


def _count_interrupts(reader: socket.socket) -> None:
    count = 0
    while END not in (numbers := reader.recv(64)):
        count += numbers.count(signal.SIGINT)
        if count > 1:
            reader.settimeout(INTERRUPT_GRACE)
            try:
                while END not in reader.recv(64):
                    pass
            except TimeoutError:
                os._exit(INTERRUPTED)
            return  # the main thread has left the block


class Decision(NamedTuple):
    """What all ranks know of a step, and what they do now. `loss` is a sum over samples of that `weight`.

    `lacking` ranks were out of memory: this step and those behind it have changed nothing.
    """

    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    grad_norm: float = 0.0
    is_bad: bool = False
    lacking: int = 0
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
        """This rank's part. Rank 0 alone knows when to save and what was written; `damage`: a picture was replaced."""
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
        if any(each.lacking for each in decisions):
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
    loss, weight, grad_norm, is_bad, lacking, stop, save, failed_writes, damage = numbers.tolist()
    return Decision(
        step, loss, weight, grad_norm, is_bad > 0, int(lacking), stop > 0, save > 0, int(failed_writes), damage > 0
    )
