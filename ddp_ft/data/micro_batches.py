"""Where a share is cut into micro-batches, and a replay buffer of the last steps' ones, so that a step that ran out of
memory can be redone with smaller ones."""

from collections import deque
from collections.abc import Generator, Iterator

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import cut
from ddp_ft.data.sampler import GlobalOrderSampler


def cut_places(samples: int, most: int | None, pairs: bool) -> range:
    """The places in a share at which its micro-batches begin, of `most` samples each (None: all), and of an even number
    if they are mixed in pairs."""
    assert not (pairs and most == 1), "no pair fits into a micro-batch of one"
    return range(0, samples, (most and most - most % (2 if pairs else 1)) or samples)


def micro_batch_sizes(sampler: GlobalOrderSampler, micro_batch: int | None) -> list[int]:
    """The numbers of samples of the micro-batches of this rank's steps: each once, the largest first."""
    lengths = {sampler.share_length(step) for step in range(sampler.steps_per_epoch)}
    cuts = [(length, cut_places(length, micro_batch, sampler.pairs)) for length in lengths]
    return sorted({min(places.step, length - start) for length, places in cuts for start in places}, reverse=True)


class Recut(Iterator[list[Batch]]):
    """The batches of each step; the newest `keeps` steps can be replayed. Nothing is read twice."""

    def __init__(self, batches: Generator[list[Batch], None, None], keeps: int) -> None:
        self._batches = batches
        self._recent: deque[list[Batch]] = deque(maxlen=keeps)
        self._again: deque[list[Batch]] = deque()
        self._most: int | None = None

    def __next__(self) -> list[Batch]:
        share = self._again.popleft() if self._again else next(self._batches)
        self._recent.append(share)
        return share if self._most is None else cut(share, self._most)

    def back(self, steps: int, most: int | None) -> None:
        """Replay the newest steps, from now on in micro-batches of up to `most` samples (even, if samples are mixed);
        None: as the loader cuts them."""
        self._again.extendleft(self._recent.pop() for _ in range(steps))
        self._most = most

    def close(self) -> None:
        """Close the generator of the batches."""
        self._batches.close()
