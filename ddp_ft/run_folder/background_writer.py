"""Writing in the background, one thing after the other, while training goes on."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

# In the order in which they are written: the best model is durable before the checkpoint that names its score.
BEST, CHECKPOINT = "best", "checkpoint"


class BackgroundWriter:
    """Runs works in a thread of their own. What failed stays due, and is tried again before what comes next.

    `failures` counts attempts in a row that failed, and `error` says why the last one did.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.error = ""
        self._due: dict[str, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None

    def submit(self, name: str, work: Callable[[], None]) -> None:
        """Begin to write; waits for the work before, if that is still under way.

        Takes the place of what failed under the same name. A checkpoint that failed is dropped for a new best model:
        it names an older one, and a newer checkpoint will follow.
        """
        self.wait()
        if name == BEST:
            self._due.pop(CHECKPOINT, None)
        self._due[name] = work
        # Not a daemon: a process that ends by itself writes to the end what it has begun.
        self._thread = threading.Thread(target=self._write, name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> str:
        """Wait, and try once more what is still due. Gives the error if it fails again; empty: all is written."""
        self.wait()
        if self._due:
            self._write()
        return self.error if self._due else ""

    def _write(self) -> None:
        for name in sorted(self._due, key=[BEST, CHECKPOINT].index):
            try:
                self._due[name]()
            except Exception as error:  # of many kinds: each library has its own for a full disk
                self.failures += 1
                self.error = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                return
            del self._due[name]
        self.failures = 0


def in_order(*works: Callable[[], Any]) -> None:
    """Do one after the other."""
    for work in works:
        work()


def copied(value: Any) -> Any:
    """A copy on the CPU of a tensor, or of all that are in mappings and lists."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: copied(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(inner) for inner in value)
    return value
