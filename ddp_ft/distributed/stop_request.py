"""Requests to stop: signals, files and the end of a batch job become one flag."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ddp_ft.errors import EXIT_INTERRUPTED

# Not SIGUSR1, which NCCL uses itself (github.com/facebookincubator/submitit/pull/1697).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# A file whose appearance asks for a stop, for batch scripts: torchrun passes no signal on without ending the run.
STOP_FILE_VARIABLE = "DDP_FT_STOP_FILE"
# Between two checks for the stop files, in seconds: each may be a request to a network file system.
LOOK_EVERY = 1.0
# How long the main thread has to end by itself after a second Ctrl-C.
INTERRUPT_GRACE = 1.0
END = b"\0"  # among the numbers of signals: the block has ended


# A forked loader worker that gets Ctrl-C before it ignores it must not write into its parent's socket.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class CutShort(BaseException):
    """A stop signal came within StopRequest.cutting_short. Libraries that catch every Exception let it through."""


class StopRequest:
    """Whether this process was asked to stop: by a signal, by one of `files`, or because its time is nearly over.

    Only a process that `looks` checks the files. `deadline` is in seconds since 1970; None: there is none.
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
            raise KeyboardInterrupt  # a second Ctrl-C ends at once
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
        """Handle the stop signals during the block."""
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            with _leaving_at_a_second_interrupt():
                yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _leaving_at_a_second_interrupt() -> Iterator[None]:
    """End the process when SIGINT came twice and the main thread, blocked in a collective, cannot handle it.

    Python runs handlers only between two of its own instructions, but writes the number of each signal to a socket at
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
                os._exit(EXIT_INTERRUPTED)
            return  # the main thread has left the block
