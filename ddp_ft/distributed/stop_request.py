"""Requests to stop: signals, files, the end of a batch job and that of torchrun become one flag."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ddp_ft.errors import EXIT_INTERRUPTED

# What terminals (INT, QUIT; HUP when they are closed) and batch systems (the others) send to a process that has to end.
STOP_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
# NCCL uses this one itself (github.com/facebookincubator/submitit/pull/1697).
NCCL_SIGNAL = signal.SIGUSR1
# nohup ignores the first, a shell without job control the second for what it starts in the background: so be it. Other
# signals are ignored by mistake (a script's `trap '' TERM` holds for its children too).
MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGQUIT)
# From the keyboard; pressed a second time, they end the process at once.
KEYS = (signal.SIGINT, signal.SIGQUIT)
# A file whose appearance asks for a stop, for batch scripts: torchrun passes no signal on without ending the run.
STOP_FILE_VARIABLE = "DDP_FT_STOP_FILE"
# Which signals torchrun passes on to its processes, before it ends them after a while; its option sets the variable.
TORCHRUN_SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
TORCHRUN_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
# Set in jobs of Slurm, PBS, LSF and Grid Engine.
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")
# Between two checks for the stop files, in seconds: each may be a request to a network file system.
LOOK_EVERY = 1.0
# How long the main thread has to end by itself after a second Ctrl-C or Ctrl-\.
INTERRUPT_GRACE = 1.0
END = b"\0"  # among the numbers of signals: the block has ended


# The request that listens in this process, if one does.
_listening: list["StopRequest"] = []

# A forked loader worker that gets Ctrl-C before it ignores it must not write into its parent's socket.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class CutShort(BaseException):
    """A stop signal came within StopRequest.cutting_short. Libraries that catch every Exception let it through."""


class StopRequest:
    """Whether this process was asked to stop: by a signal, by one of `files`, or because its time is nearly over.

    Only a process that `looks` checks the files. `deadline` is in seconds since 1970; None: there is none. A process
    that `has_agent` also stops when its parent ends, which is torchrun. With `nccl` it ignores NCCL_SIGNAL, so that a
    batch script that sends it does not end the process unsaved.
    """

    def __init__(
        self, files: Sequence[Path] = (), looks: bool = True, has_agent: bool = False, nccl: bool = False
    ) -> None:
        self.reason = ""
        self.files = tuple(files) if looks else ()
        self.deadline: float | None = None
        self.nccl = nccl
        self._agent = os.getppid() if has_agent else None
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
            if self._agent is not None and os.getppid() != self._agent:
                self.reason = "the end of torchrun"
        return bool(self.reason)

    @property
    def interrupted(self) -> bool:
        """Whether one of KEYS was pressed."""
        return self._interrupts > 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number in KEYS
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
        """Handle the stop signals during the block, also those that the parent has blocked."""
        previous = {number: signal.signal(number, self._on_signal) for number in heeded_signals()}
        if self.nccl:
            signal.signal(NCCL_SIGNAL, signal.SIG_IGN)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            _listening.append(self)
            with _leaving_at_a_second_interrupt():
                yield self
        finally:
            _listening.clear()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def unheeded(self, environ: Mapping[str, str] = os.environ) -> list[str]:
        """A remark for each signal that should ask this process to stop and cannot, and what to send in its place."""
        remarks = []
        if self.nccl:
            name = NCCL_SIGNAL.name
            remarks.append(f"{name} does not stop this run, as NCCL uses it. Send SIGUSR2 or SIGTERM.")
        if self._agent is not None and (fatal := _fatal_to_torchrun(environ)):
            remarks.append(fatal)
        return remarks


def is_interrupted() -> bool:
    """Whether Ctrl-C was pressed in a process that listens, for work before training, which no agreement interrupts."""
    return any(request.interrupted for request in _listening)


def heeded_signals() -> list[signal.Signals]:
    """STOP_SIGNALS without those that this process was started to ignore."""
    ignored = {number for number in MAY_BE_IGNORED if signal.getsignal(number) == signal.SIG_IGN}
    return [number for number in STOP_SIGNALS if number not in ignored]


def _fatal_to_torchrun(environ: Mapping[str, str]) -> str:
    """What a batch job that starts torchrun itself has to know; empty outside of one, or if nothing threatens."""
    given = environ.get(TORCHRUN_SIGNALS_VARIABLE)  # None: it is too old for the option
    handled = (given or TORCHRUN_SIGNALS).split(",")
    fatal = [name for name in ("SIGUSR1", "SIGUSR2") if name not in handled]
    is_shielded = STOP_FILE_VARIABLE in environ  # by `ddp_ft.cli.node`
    if not fatal or is_shielded or not any(environ.get(name) for name in JOB_VARIABLES):
        return ""
    option = f"start it with --signals-to-handle={TORCHRUN_SIGNALS},SIGUSR2, or " if given else ""
    return (
        f"torchrun itself ends at once on {' and '.join(fatal)}, and its processes may not save. "
        f"If the batch job sends that, {option}have it touch the run folder's file `stop` instead."
    )


@contextmanager
def _leaving_at_a_second_interrupt() -> Iterator[None]:
    """End the process when one of KEYS came twice and the main thread, blocked in a collective, cannot handle it.

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
        count += sum(map(numbers.count, KEYS))
        if count > 1:
            reader.settimeout(INTERRUPT_GRACE)
            try:
                while END not in reader.recv(64):
                    pass
            except TimeoutError:
                os._exit(EXIT_INTERRUPTED)
            return  # the main thread has left the block
