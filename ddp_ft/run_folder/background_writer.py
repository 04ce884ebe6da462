"""Writing in the background, one thing after the other, while training continues."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ddp_ft.errors import typed_line

# In the order in which they are written: the best model is durable before the checkpoint that names its score.
BEST, CHECKPOINT = "best", "checkpoint"


class BackgroundWriter:
    """Runs works in a thread of its own. What failed stays due, and is tried again before the next work.

    `failures` counts attempts in a row that failed, and `error` is the reason of the last one.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.error = ""
        self._due: dict[str, Sequence[Callable[[], object]]] = {}
        self._thread: threading.Thread | None = None

    def submit(self, name: str, *works: Callable[[], object]) -> None:
        """Begin to do these works one after the other; waits for the ones before, if they are not done yet.

        They replace what failed under the same name. A checkpoint that failed is dropped for a new best model: it
        names an older one, and a newer checkpoint will follow.
        """
        self.wait()
        if name == BEST:
            self._due.pop(CHECKPOINT, None)
        self._due[name] = works
        # Not a daemon: a process that ends by itself first finishes what it has begun to write.
        self._thread = threading.Thread(target=self._write, name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> str:
        """Wait, and try once more what is still due. Return the error if it fails again; empty: all is written."""
        self.wait()
        if self._due:
            self._write()
        return self.error if self._due else ""

    def _write(self) -> None:
        for name in sorted(self._due, key=[BEST, CHECKPOINT].index):
            try:
                for work in self._due[name]:
                    work()
            except Exception as error:  # of many kinds: each library has its own for a full disk
                self.failures += 1
                self.error = typed_line(error)
                return
            del self._due[name]
        self.failures = 0


def copied(value: Any) -> Any:
    """A copy on the CPU of a tensor, or of all tensors in mappings and lists."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: copied(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(inner) for inner in value)
    return value
