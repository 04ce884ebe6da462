"""data.on_error = skip: another sample in the place of a damaged one, and evaluation without it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.contracts import Batch, LabelledSource, Sample, Source
from ddp_ft.data.bad_samples.find import read_all
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.rng import derive_seed
from ddp_ft.data.roles import TRAIN

# Tells the seed of a replacement from those of orders and samples, which hold an epoch in its place.
_REPLACES = -1
# Of a set that is half damaged, one in 2^64 samples finds no replacement.
_MOST_TRIES = 64


class Lenient:
    """A training set in which another sample takes the place of a damaged one, target and all.

    Which one is drawn from (seed, index of the damaged one, number of the try), in proportion to `weights` (float64,
    one a sample) where the order is drawn by them. So it depends on no rank, worker, epoch or interruption.
    `read` raises BadSample as the set's own does; the loader then takes the first of `replacements` that can be read.
    """

    def __init__(self, source: LabelledSource, seed: int, weights: Tensor | None, quarantine: Quarantine) -> None:
        self.source = source
        self.seed = seed
        self.quarantine = quarantine
        self.targets: NDArray[Any] = source.targets
        self.weights: NDArray[np.float32] | None = source.weights
        self._ends = None if weights is None else (torch.cumsum(weights, 0) / weights.sum()).numpy()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def kind(self) -> str:
        """That of the set."""
        return self.source.kind

    def name(self, index: int) -> str:
        """What the set calls the sample."""
        return self.source.name(index)

    def open(self, index: int) -> Sample:
        """The sample, without its weight where `weights` was set to None."""
        return self._weighted(open_sample(self.source, index))

    def read(self, index: int) -> Batch:
        """The same, decoded."""
        return dict(self._weighted(self.source.read(index)))

    def _weighted(self, sample: Sample) -> Sample:
        return sample if self.weights is not None else {n: value for n, value in sample.items() if n != "weight"}

    def replacements(self, index: int) -> Iterator[int]:
        """What to read in the place of that sample, in this order."""
        for attempt in range(_MOST_TRIES):
            chosen = self._draw(derive_seed(self.seed, _REPLACES, index, attempt))
            if chosen != index:
                yield chosen

    def _draw(self, seed: int) -> int:
        if self._ends is None:
            return seed % len(self)
        return int(np.searchsorted(self._ends, (seed >> 10) / 2**53, side="right"))  # 63 bits to a float64 below 1

    def report(self, damaged: Mapping[int, str]) -> None:
        """Tell the quarantine of samples, {index: reason}, that others have replaced."""
        for index, reason in damaged.items():
            self.quarantine.report(TRAIN, path_of(self.source, index), reason)


class Remaining:
    """The samples of a set that can be read; `left_out` are the others, {path: reason}."""

    def __init__(self, source: LabelledSource, damaged: Mapping[int, str]) -> None:
        self.source = source
        self.kept = np.delete(np.arange(len(source)), list(damaged))
        self.left_out = {path_of(source, index): reason for index, reason in damaged.items()}
        self.targets: NDArray[Any] = source.targets[self.kept]
        self.weights: NDArray[np.float32] | None = None if source.weights is None else source.weights[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def kind(self) -> str:
        """That of the set."""
        return self.source.kind

    def name(self, index: int) -> str:
        """What the set calls the sample."""
        return self.source.name(int(self.kept[index]))

    def open(self, index: int) -> Sample:
        """The sample. Raises BadSample if it was damaged only now."""
        return open_sample(self.source, int(self.kept[index]))

    def read(self, index: int) -> Batch:
        """The same, decoded."""
        return self.source.read(int(self.kept[index]))


def path_of(source: Source, index: int) -> str:
    """The path of a sample as split.json has it, which does not change when the data is moved; else its name."""
    if isinstance(source, Lenient | Remaining):
        return path_of(source.source, source.kept[index] if isinstance(source, Remaining) else index)
    paths: Sequence[str] | None = getattr(source, "paths", None)
    return source.name(index) if paths is None else paths[index]


def leave_out_damaged(source: LabelledSource, split: str, quarantine: Quarantine) -> LabelledSource:
    """The set without its damaged samples, all of which are looked for now; they are told to the quarantine.

    UserError if a disk fails on the way.
    """
    damaged = dict(read_all(source, strict=True))
    for index, reason in damaged.items():
        quarantine.report(split, path_of(source, index), reason)
    return Remaining(source, damaged) if damaged else source


def left_out(source: Source) -> dict[str, str]:
    """What `leave_out_damaged` left out of the set, {path: reason}."""
    return source.left_out if isinstance(source, Remaining) else {}
