"""Steps' micro-batches that can be had once more, cut more finely: nothing is read again."""

from collections import deque
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from ddp_ft.contracts import Batch


class Recut(Iterator[list[Batch]]):
    """What `batches` gives step by step; the newest `keeps` steps can be had again."""

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


def cut(share: list[Batch], most: int) -> list[Batch]:
    """A step's share in micro-batches of `most` samples, the last one of what is left: as a loader with that
    micro-batch cuts it. Views where that can be."""
    if any(_length(batch) % most for batch in share[:-1]):
        share = [_joined(share)]
    return [_part(batch, start, start + most) for batch in share for start in range(0, _length(batch), most)]


def first_samples(batch: Batch, count: int) -> Batch:
    """So many samples of a batch (even, where samples are mixed in pairs), as views."""
    return _part(batch, 0, count)


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _part(batch: Batch, start: int, stop: int) -> Batch:
    part = {name: tensor[start:stop] for name, tensor in batch.items()}
    return _moved(part, -start)


def _moved(batch: Batch, places: int) -> Batch:
    """Partners are named by their places in the micro-batch."""
    return batch | {"mix_partner": batch["mix_partner"] + places} if "mix_partner" in batch else batch


def _joined(share: list[Batch]) -> Batch:
    starts, moved = 0, []
    for batch in share:
        moved.append(_moved(batch, starts))
        starts += _length(batch)
    joined = {name: _rows([batch[name] for batch in moved]) for name in moved[0]}
    is_pinned = share[0]["index"].is_pinned()
    return {name: tensor.pin_memory() if is_pinned else tensor for name, tensor in joined.items()}


def _rows(parts: list[Tensor]) -> Tensor:
    if parts[0].ndim == 2:  # encoded pictures are padded to the longest of their micro-batch
        width = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)
