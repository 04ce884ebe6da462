"""Replay buffer of the last steps' micro-batches: a step that ran out of memory can be redone with smaller ones."""

from collections import deque
from collections.abc import Generator, Iterator

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import cut


class Recut(Iterator[list[Batch]]):
    """What `batches` gives step by step; the newest `keeps` steps can be had again. Nothing is read twice."""

    def __init__(self, batches: Generator[list[Batch], None, None], keeps: int) -> None:
        self._batches = batches
        self._recent: deque[list[Batch]] = deque(maxlen=keeps)
        self._again: deque[list[Batch]] = deque()
        self._most: int | None = None

    def __next__(self) -> list[Batch]:
        share = self._again.popleft() if self._again else next(self._batches)
        self._recent.append(share)
        return share if self._most is None else cut(share, self._most)

    def back(self, steps: int, most: int) -> None:
        """Give the newest steps again, and from there on micro-batches of that many samples at most (even, where
        samples are mixed in pairs)."""
        self._again.extendleft(self._recent.pop() for _ in range(steps))
        self._most = most

    def close(self) -> None:
        """End what gives the batches."""
        self._batches.close()
