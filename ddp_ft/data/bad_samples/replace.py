"""data.on_error = skip: another sample in the place of a damaged one, and evaluation without damaged ones."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ddp_ft.contracts import LabelledSource, Source
from ddp_ft.data.bad_samples.find import read_all
from ddp_ft.data.bad_samples.quarantine import Quarantine
from ddp_ft.data.derived import Derived, path_of
from ddp_ft.data.rng import derive_seed
from ddp_ft.data.roles import TRAIN

# Makes the seed of a replacement differ from those of orders and samples, which have an epoch in its place.
_REPLACES = -1
# Of a set that is half damaged, one in 2^64 samples finds no replacement.
_MOST_TRIES = 64


class Lenient(Derived):
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


class Remaining(Derived):
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
