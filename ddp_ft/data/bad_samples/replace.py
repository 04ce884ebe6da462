"""data.on_error = skip: another sample in the place of a damaged one, and evaluation without damaged ones."""

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

# Makes the seed of a replacement differ from those of orders and samples, which have an epoch in its place.
_REPLACES = -1
# Of a set that is half damaged, one in 2^64 samples finds no replacement.
_MOST_TRIES = 64


class _Derived:
    """A set whose samples are those of another one, each at its `place` there."""

    def __init__(self, source: LabelledSource) -> None:
        self.source = source
        self.targets: NDArray[Any] = source.targets
        self.weights: NDArray[np.float32] | None = source.weights

    def __len__(self) -> int:
        return len(self.source)

    @property
    def kind(self) -> str:
        """The kind of the other set."""
        return self.source.kind

    def place(self, index: int) -> int:
        """The sample's index in the other set."""
        return index

    def name(self, index: int) -> str:
        """The sample's name in the other set."""
        return self.source.name(self.place(index))

    def open(self, index: int) -> Sample:
        """The sample, without its weight if `weights` is None. Raises BadSample."""
        return self._weighted(open_sample(self.source, self.place(index)))

    def read(self, index: int) -> Batch:
        """The same, decoded."""
        return dict(self._weighted(self.source.read(self.place(index))))

    def _weighted(self, sample: Sample) -> Sample:
        return sample if self.weights is not None else {n: value for n, value in sample.items() if n != "weight"}


class Lenient(_Derived):
    """A training set in which another sample takes the place of a damaged one, target and all.

    The other one is drawn from (seed, index of the damaged one, number of the try), in proportion to `weights`
    (float64, one for each sample) if the order is. So it depends on no rank, worker, epoch or interruption. `read`
    raises BadSample as the set's own does; the loader then takes the first of `replacements` that can be read.
    """

    def __init__(self, source: LabelledSource, seed: int, weights: Tensor | None, quarantine: Quarantine) -> None:
        super().__init__(source)
        self.seed = seed
        self.quarantine = quarantine
        self._ends = None if weights is None else (torch.cumsum(weights, 0) / weights.sum()).numpy()

    def replacements(self, index: int) -> Iterator[int]:
        """The samples to read in the place of that one, in this order."""
        for attempt in range(_MOST_TRIES):
            chosen = self._draw(derive_seed(self.seed, _REPLACES, index, attempt))
            if chosen != index:
                yield chosen

    def _draw(self, seed: int) -> int:
        if self._ends is None:
            return seed % len(self)
        return int(np.searchsorted(self._ends, (seed >> 10) / 2**53, side="right"))  # 63 bits to a float64 below 1

    def report(self, damaged: Mapping[int, str]) -> None:
        """Report samples that were replaced, {index: reason}, to the quarantine."""
        for index, reason in damaged.items():
            self.quarantine.report(TRAIN, path_of(self.source, index), reason)


class Remaining(_Derived):
    """The samples of a set that can be read; `left_out` are the others, {path: reason}."""

    def __init__(self, source: LabelledSource, damaged: Mapping[int, str]) -> None:
        super().__init__(source)
        self.kept = np.delete(np.arange(len(source)), list(damaged))
        self.left_out = {path_of(source, index): reason for index, reason in damaged.items()}
        self.targets = source.targets[self.kept]
        self.weights = None if source.weights is None else source.weights[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def place(self, index: int) -> int:
        """The sample's index among all."""
        return int(self.kept[index])


def path_of(source: Source, index: int) -> str:
    """The path of a sample as in split.json, which does not change when the data is moved; else its name."""
    if isinstance(source, _Derived):
        return path_of(source.source, source.place(index))
    paths: Sequence[str] | None = getattr(source, "paths", None)
    return source.name(index) if paths is None else paths[index]


def leave_out_damaged(source: LabelledSource, split: str, quarantine: Quarantine) -> LabelledSource:
    """The set without its damaged samples, all of which are looked for now and reported to the quarantine.

    UserError if a disk fails.
    """
    damaged = dict(read_all(source, strict=True))
    for index, reason in damaged.items():
        quarantine.report(split, path_of(source, index), reason)
    return Remaining(source, damaged) if damaged else source


def left_out(source: Source) -> dict[str, str]:
    """What `leave_out_damaged` left out of the set, {path: reason}."""
    return source.left_out if isinstance(source, Remaining) else {}
