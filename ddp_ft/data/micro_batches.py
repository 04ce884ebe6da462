"""Where a share is cut into micro-batches, and a replay buffer of the last steps' ones: a step that ran out of memory
can be redone with smaller ones."""

from collections import deque
from collections.abc import Generator, Iterator

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import cut
from ddp_ft.data.sampler import GlobalOrderSampler


def cut_places(samples: int, most: int | None, pairs: bool) -> range:
    """Where the micro-batches of a share begin, a step apart; of `most` samples each (None: all), and an even number of
    them where they are mixed in pairs."""
    assert not (pairs and most == 1), "no pair fits into a micro-batch of one"
    return range(0, samples, (most and most - most % (2 if pairs else 1)) or samples)


def micro_batch_sizes(sampler: GlobalOrderSampler, micro_batch: int | None) -> list[int]:
    """How many samples the micro-batches of this rank's steps have: each size once, the largest first."""
    sizes = set()
    for length in {sampler.share_length(step) for step in range(sampler.steps_per_epoch)}:
        places = cut_places(length, micro_batch, sampler.pairs)
        sizes |= {min(places.step, length - start) for start in places}
    return sorted(sizes, reverse=True)


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
