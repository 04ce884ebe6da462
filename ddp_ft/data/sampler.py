"""The order of samples as arithmetic: the samples of an optimizer step follow from (seed, epoch, step)."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from ddp_ft.contracts import Address
from ddp_ft.data.length_groups import grouped
from ddp_ft.data.rng import derive_seed
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, known_names

SAMPLINGS = ("natural", "balanced", "weighted")


def even_share(total: int, parts: int, part: int) -> range:
    """The places of 0..total-1 for `part` of `parts`: contiguous, and one more for the first parts."""
    base, extra = divmod(total, parts)
    start = part * base + min(part, extra)
    return range(start, start + base + (part < extra))


def smallest_share(samples: int, batch_size: int, ranks: int, pairs: bool = False) -> int:
    """The fewest samples that a rank has in some step of `GlobalOrderSampler`, the first; 0 if one has none."""
    smallest_batch = samples // -(-samples // batch_size)
    return smallest_batch // 2 // ranks * 2 if pairs and ranks > 1 else smallest_batch // ranks


def draw_in_proportion(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many indices as there are weights (N, 0 or more), in proportion to them and in random order, int64 (N,).

    Systematic sampling (Madow 1944): N points at equal distances on a line on which each sample has a section as long
    as its weight. Each sample is drawn the floor or ceiling of its expected number of times, and so are all samples of
    equal weight together, such as those of a class, because their sections are adjacent. Each call draws others.
    """
    count = len(weights)
    _, group = torch.unique(weights, return_inverse=True)
    line = torch.randperm(count, generator=generator)
    group_places = torch.randperm(int(group.max()) + 1, generator=generator)
    line = line[torch.argsort(group_places[group[line]], stable=True)]
    ends = torch.cumsum(weights[line].double(), 0)
    # Below count even as a float64, since the offset has 24 bits.
    points = torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=generator)
    drawn = line[torch.searchsorted(ends / ends[-1] * count, points, right=True)]
    return drawn[torch.randperm(count, generator=generator)]


class GlobalOrderSampler(DistributedSampler[int]):
    """A DistributedSampler whose order does not depend on the number of ranks, and which starts at any step.

    `batch_size` is global. An epoch of n samples has ceil(n / batch_size) steps, whose batches differ in size by at
    most one; nothing is dropped or repeated. Each step's batch is cut into contiguous shares, one for each rank. Steps
    are counted over all epochs. Iterating yields this rank's indices of the epoch set by `set_epoch`.

    With `pairs`, the places 2j and 2j + 1 of a global batch are in the same share, and shares differ by two at most.
    With `weights` (float64, one for each sample, in any unit), an epoch has n draws in proportion to them instead.
    """

    def __init__(
        self,
        dataset: int | Sized,
        batch_size: int,
        num_replicas: int,
        rank: int,
        seed: int,
        shuffle: bool = True,
        pairs: bool = False,
        weights: Tensor | None = None,
    ) -> None:
        self.size = dataset if isinstance(dataset, int) else len(dataset)
        if self.size < 1 or batch_size < 1:
            raise ValueError(f"{self.size} samples in batches of {batch_size}: both must be at least 1")
        if weights is not None and (weights.shape != (self.size,) or not shuffle):
            raise ValueError(f"{tuple(weights.shape)} weights for {self.size} samples; shuffle is {shuffle}")
        # The base class only takes the length.
        super().__init__(range(self.size), num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.pairs = pairs
        self.weights = weights
        self.steps_per_epoch = -(-self.size // batch_size)
        self.total_size = self.size  # no padding
        self.num_samples = sum(len(self._places(step)) for step in range(self.steps_per_epoch))
        self._orders: dict[int, Tensor] = {}
        self._lengths: NDArray[np.int32] | None = None

    def group_by_length(self, lengths: NDArray[np.int32]) -> None:
        """From now on make batches of samples of similar length, as `grouped` does; `lengths` are of all samples."""
        assert len(lengths) == self.size and not self.pairs
        self._lengths, self._orders = lengths, {}

    def global_batch(self, step: int) -> list[Address]:
        """The samples of that step, counted from the start of training, over all ranks."""
        return self._addresses(step, range(self.batch_length(step)))

    def global_indices(self, step: int) -> Tensor:
        """The same samples by their indices alone, int64."""
        places = self._slice(step)
        return self._order(step // self.steps_per_epoch)[places.start : places.stop]

    def share(self, step: int) -> list[Address]:
        """This rank's share of the step's samples; one ghost if it is empty, since the rank must still take part in the
        synchronised backward pass."""
        if mine := self._addresses(step, self._places(step)):
            return mine
        first = self._addresses(step, range(1))[0]
        return [Address(first.index, first.epoch, first.position, ghost=True)]

    def share_length(self, step: int) -> int:
        """The length of `share`, its ghost included, without drawing the order."""
        return max(1, len(self._places(step)))

    @property
    def largest_share(self) -> int:
        """The most samples that any rank has in any step."""
        length = -(-self.size // self.steps_per_epoch)
        if not self.pairs:
            return -(-length // self.num_replicas)
        pairs, ranks = length // 2, self.num_replicas
        return 2 * (pairs // ranks + 1) if pairs % ranks else 2 * (pairs // ranks) + length % 2

    def batch_length(self, step: int) -> int:
        """How many samples the step has over all ranks."""
        return len(self._slice(step))

    def _slice(self, step: int) -> range:
        """The places of the step's samples in its epoch."""
        place = step % self.steps_per_epoch
        return range(place * self.size // self.steps_per_epoch, (place + 1) * self.size // self.steps_per_epoch)

    def _places(self, step: int) -> range:
        length = self.batch_length(step)
        if not self.pairs:
            return even_share(length, self.num_replicas, self.rank)
        mine = even_share(length // 2, self.num_replicas, self.rank)
        is_last = self.rank == self.num_replicas - 1  # it has the fewest pairs, and so takes the odd sample
        return range(2 * mine.start, length if is_last else 2 * mine.stop)

    def _addresses(self, step: int, places: range) -> list[Address]:
        epoch, start = step // self.steps_per_epoch, self._slice(step).start
        first, last = start + places.start, start + places.stop
        indices = self._order(epoch)[first:last].tolist()
        offset = epoch * self.size + first
        return [Address(index, epoch, offset + k) for k, index in enumerate(indices)]

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            # Two are kept: the loader reads ahead into the next epoch while the loop is still in this one.
            self._orders = {known: self._orders[known] for known in list(self._orders)[-1:]}
            self._orders[epoch] = self._draw(epoch)
        return self._orders[epoch]

    def _draw(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = draw_in_proportion(self.weights, generator)
        if self._lengths is None:
            return order
        return grouped(order, self._lengths, [self._slice(step) for step in range(self.steps_per_epoch)], generator)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            yield from (address.index for address in self._addresses(step, self._places(step)))

    def __len__(self) -> int:
        return self.num_samples


def sampling_weights(
    kind: str, targets: NDArray[np.generic], weights: NDArray[np.float32] | None, schema_kind: str
) -> Tensor | None:
    """The weights for drawing samples, float64 (N,); None if each sample is seen once an epoch.

    `kind` is data.sampling. "balanced" makes classes equally frequent, as `TargetKind.balanced` defines it; "weighted"
    takes the samples' own weights. `targets` and `schema_kind` are as in `LabelledSource` and `Schema`. UserError for
    weights that are missing, negative, no numbers or all 0, and for balanced targets that have no classes.
    """
    if kind not in SAMPLINGS:
        raise UserError(f"data.sampling = '{kind}' is unknown.", known_names(kind, SAMPLINGS))
    if kind == "natural":
        return None
    if kind == "weighted":
        return torch.from_numpy(_checked(weights))
    return torch.from_numpy(KINDS[schema_kind].balanced(targets))


def _checked(weights: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if weights is None:
        hint = "Name the table's column of weights: --set data.weight=COLUMN."
        raise UserError("--sampling weighted: the samples have no weights.", hint)
    given = weights.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if bad.size:
        first = f"the first {given[bad[0]]} of sample {bad[0]}"
        message = f"--sampling weighted: {bad.size} of {given.size} weights are negative or no numbers, {first}."
        raise UserError(message, "Weights are numbers from 0 up (data.weight); 0: never drawn.")
    if not given.any():
        raise UserError("--sampling weighted: all weights are 0, so there is nothing to draw.", "See data.weight.")
    return given
