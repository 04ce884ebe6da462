"""The CPU time of a process and all its descendants, read from /proc while it runs.

Where all is computed on the CPU, the CPU time of an image hardly depends on what else the machine does, and images per
second do.
"""

import os
import threading
import time
from bisect import bisect_left
from pathlib import Path

PAUSE = 0.1  # seconds between two looks
_TICKS = os.sysconf("SC_CLK_TCK")


def tree_seconds(root: int) -> float:
    """CPU seconds of that process and its living descendants, with those that have ended and were waited for."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything; behind it: state, parent... utime, stime, cutime, cstime.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        seconds[int(stat.parent.name)] = sum(map(int, fields[11:15])) / _TICKS
    return sum(seconds[pid] for pid in parents if _is_below(pid, root, parents))


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid not in (root, 0):
        pid = parents.get(pid, 0)
    return pid == root


class CpuClock:
    """Looks at a process and its descendants from its beginning to the end of the block."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.times: list[float] = []
        self.seconds: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="CPU time", daemon=True)

    def __enter__(self) -> "CpuClock":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(PAUSE):
            # A process that ends while it is looked for is in no sum for a moment, and once the root has been waited
            # for nothing is.
            self.seconds.append(max([tree_seconds(self.root), *self.seconds[-1:]]))
            self.times.append(time.time())

    def between(self, began: float, ended: float) -> float | None:
        """CPU seconds between two moments (seconds since 1970), to a tenth of a second or so; None if not seen."""
        first, last = bisect_left(self.times, began), bisect_left(self.times, ended)
        if first == last or last >= len(self.times):
            return None
        return self.seconds[last] - self.seconds[first]
