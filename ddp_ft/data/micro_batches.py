"""Where a share is cut into micro-batches, and a replay buffer of the last steps' ones, so that a step that ran out of
memory can be redone with smaller ones."""

from collections import deque
from collections.abc import Generator, Iterator

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import cut, even_cuts
from ddp_ft.data.sampler import GlobalOrderSampler


def cut_share(samples: int, most: int | None, pairs: bool, least: int = 1) -> list[range]:
    """The places in a share of the samples of each micro-batch: `most` (None: all), an even number if they are mixed in
    pairs. None has fewer than `least`, if the share has as many: the last one may have `least` - 1 more than `most`."""
    assert not (pairs and most == 1), "no pair fits into a micro-batch of one"
    return even_cuts(samples, (most and most - most % (2 if pairs else 1)) or samples, least)


def micro_batch_sizes(sampler: GlobalOrderSampler, micro_batch: int | None, least: int = 1) -> list[int]:
    """The numbers of samples of the micro-batches of this rank's steps: each once, the largest first."""
    lengths = {sampler.share_length(step) for step in range(sampler.steps_per_epoch)}
    cuts = [cut_share(length, micro_batch, sampler.pairs, least) for length in lengths]
    return sorted({len(places) for share in cuts for places in share}, reverse=True)


def uneven_passes(
    first: GlobalOrderSampler, last: GlobalOrderSampler, micro_batch: int | None, least: int = 1
) -> tuple[int, int] | None:
    """The numbers of micro-batches of the first and the last rank, whose shares are the largest and the smallest, in a
    step in which they differ; None if there is no such step."""
    for step in range(first.steps_per_epoch):
        passes = [len(cut_share(each.share_length(step), micro_batch, each.pairs, least)) for each in (first, last)]
        if passes[0] != passes[1]:
            return passes[0], passes[1]
    return None


class Recut(Iterator[list[Batch]]):
    """The batches of each step; the newest `keeps` steps can be replayed. Nothing is read twice. `least` is as in
    `cut_share`."""

    def __init__(self, batches: Generator[list[Batch], None, None], keeps: int, least: int = 1) -> None:
        self._batches = batches
        self._recent: deque[list[Batch]] = deque(maxlen=keeps)
        self._again: deque[list[Batch]] = deque()
        self._most: int | None = None
        self._least = least

    def __next__(self) -> list[Batch]:
        share = self._again.popleft() if self._again else next(self._batches)
        self._recent.append(share)
        return share if self._most is None else cut(share, self._most, self._least)

    def back(self, steps: int, most: int | None) -> None:
        """Replay the newest steps, from now on in micro-batches of up to `most` samples (even, if samples are mixed);
        None: as the loader cuts them."""
        self._again.extendleft(self._recent.pop() for _ in range(steps))
        self._most = most

    def close(self) -> None:
        """Close the generator of the batches."""
        self._batches.close()
