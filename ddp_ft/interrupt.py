"""Requests to stop: signals set a flag, and nothing else happens until the loop looks at it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Not SIGUSR1: NCCL uses it itself (github.com/facebookincubator/submitit/pull/1697).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.reason = ""

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C leaves at once
        self.reason = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take the stop signals for the time of the block."""
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
