"""The order of samples as arithmetic: (seed, epoch, step) says which samples an optimizer step takes."""

import hashlib
from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from ddp_ft.contracts import Address


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from these numbers, the same on every machine and in every version.

    Unlike a sum, it gives unrelated seeds for (seed, epoch) = (0, 1) and (1, 0).
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def even_share(total: int, parts: int, part: int) -> range:
    """The places 0..total-1 that fall to `part` of `parts`: contiguous, the first ones get one more."""
    base, extra = divmod(total, parts)
    start = part * base + min(part, extra)
    return range(start, start + base + (part < extra))


class GlobalOrderSampler(DistributedSampler[int]):
    """A DistributedSampler whose order does not depend on the number of ranks, and which starts at any step.

    `batch_size` is global. An epoch of n samples has ceil(n / batch_size) steps, whose batches differ in size by
    at most one; nothing is dropped or repeated. Each step's batch is cut into contiguous shares, one a rank.
    Steps are counted on over epochs. Iterated, it gives this rank's indices of the epoch set by `set_epoch`.
    """

    def __init__(
        self,
        dataset: int | Sized,
        batch_size: int,
        num_replicas: int,
        rank: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.size = dataset if isinstance(dataset, int) else len(dataset)
        if self.size < 1 or batch_size < 1:
            raise ValueError(f"{self.size} samples in batches of {batch_size}: both must be at least 1")
        # The base class wants something with a length and looks at nothing else.
        super().__init__(range(self.size), num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self.size // batch_size)
        self.total_size = self.size  # no padding
        self.num_samples = sum(len(self._places(step)) for step in range(self.steps_per_epoch))
        self._orders: dict[int, Tensor] = {}

    def global_batch(self, step: int) -> list[Address]:
        """The samples of that step, counted from the start of training, over all ranks."""
        return self._addresses(step, range(self.batch_length(step)))

    def share(self, step: int) -> list[Address]:
        """This rank's part of the step's samples; never empty.

        Where there are fewer samples than ranks, it is one ghost: the rank must still take part in the
        synchronised backward pass.
        """
        mine = self._addresses(step, self._places(step))
        if mine:
            return mine
        first = self._addresses(step, range(1))[0]
        return [Address(first.index, first.epoch, first.position, ghost=True)]

    def share_length(self, step: int) -> int:
        """How many samples `share` gives, its ghost included, without drawing the order."""
        return max(1, len(self._places(step)))

    def batch_length(self, step: int) -> int:
        """How many samples the step has over all ranks."""
        return len(self._slice(step))

    def _slice(self, step: int) -> range:
        place = step % self.steps_per_epoch
        return range(place * self.size // self.steps_per_epoch, (place + 1) * self.size // self.steps_per_epoch)

    def _places(self, step: int) -> range:
        return even_share(self.batch_length(step), self.num_replicas, self.rank)

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
        return torch.randperm(self.size, generator=generator)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            yield from (address.index for address in self._addresses(step, self._places(step)))

    def __len__(self) -> int:
        return self.num_samples
