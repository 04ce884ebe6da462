"""From addresses to batches, in this process or in forked workers; what comes out does not depend on which."""

import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ddp_ft.contracts import Address, BadSample, Batch, Source
from ddp_ft.data.damage import damaged_error, reason_of
from ddp_ft.data.mixing import Mixing, draw_mixes
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.seeds import drawing_from
from ddp_ft.data.transforms import Transform
from ddp_ft.environment import usable_cores

_MOST_WORKERS = 16  # some 600 pictures/s each are more than fine-tuning on one GPU takes; each costs memory


class Portion(NamedTuple):
    """The readable samples of one fetch, None if there are none; and {index: reason} of the damaged ones."""

    batch: Batch | None
    damaged: dict[int, str]


class _Samples(Dataset[tuple[Address, Batch | str]]):
    """A sample by its address, or the reason why it cannot be read: workers hand on no exceptions."""

    def __init__(self, source: Source, transform: Transform, seed: int, mixing: Mixing | None = None) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.mixing = mixing

    def __getitem__(self, address: Address) -> tuple[Address, Batch | str]:
        try:
            sample = self.source.read(address.index)
        except BadSample as error:
            return address, reason_of(self.source, address.index, error)
        with drawing_from(self.seed, address.epoch, address.position):
            return address, sample | {"image": self.transform(sample["image"])}

    def collate(self, samples: list[tuple[Address, Batch | str]]) -> Portion:
        """The samples of a fetch as one batch."""
        damaged = {address.index: reason for address, reason in samples if isinstance(reason, str)}
        good = [(address, sample) for address, sample in samples if not isinstance(sample, str)]
        if not good:
            return Portion(None, damaged)
        addresses = [address for address, _ in good]
        batch = _stack([sample for _, sample in good])
        batch["weight"] = _weights(batch, addresses)
        batch["index"] = torch.tensor([address.index for address in addresses])
        batch["position"] = torch.tensor([address.position for address in addresses])
        if self.mixing is not None and not damaged:
            batch |= draw_mixes(self.mixing, self.seed, addresses, *batch["image"].shape[-2:])
        return Portion(batch, damaged)


def _stack(samples: list[Batch]) -> Batch:
    batch: Batch = default_collate([sample | {"image": sample["image"].permute(1, 2, 0)} for sample in samples])
    batch["image"] = batch["image"].permute(0, 3, 1, 2)  # channels last, as they come: reordering took 170 us each
    return batch


def _weights(batch: Batch, addresses: list[Address]) -> Tensor:
    """A sample's own weight, 1 if it has none, 0 for a ghost."""
    counts = torch.tensor([0.0 if address.ghost else 1.0 for address in addresses])
    return counts * batch["weight"].float() if "weight" in batch else counts


def _portions(dataset: _Samples, fetches: Iterable[list[Address]], workers: int, pin_memory: bool) -> Iterator[Portion]:
    """What the fetches give, in their order; workers read ahead two fetches each."""
    with warnings.catch_warnings():
        # More workers than cores is for the caller to judge, and Python >= 3.12 warns of any fork beside threads.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=fetches,  # any iterable of lists of keys does
            num_workers=workers,
            collate_fn=dataset.collate,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            # Forked workers start at once; spawned ones import torch for seconds.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else it draws a seed from the caller's
        )
        return iter(loader)


def _ignore_signals(_worker: int) -> None:
    """A stop request reaches the whole process group; the parent decides, and the workers end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainLoader:
    """This rank's share of each optimizer step from `start_step` to `total_steps`, as a list of micro-batches.

    A batch has the source's tensors, with "image" transformed, and "weight" (float32; the sample's own or 1, 0 for a
    ghost), "index" and "position" (int64), and with `mixing` what `draw_mixes` says. All that is random about a
    sample is drawn from torch's CPU generator seeded by (seed, epoch, position). `micro_batch` is the most samples of
    a micro-batch; None: the whole share. One run of the workers covers all steps, so that none waits at the border
    of two epochs.

    `mixing` needs a sampler with `pairs`; no micro-batch parts a pair, so an odd `micro_batch` counts as one less.
    Raises UserError if that leaves none. Iterating raises UserError if a sample is damaged, after looking for all
    others that are.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        sampler: GlobalOrderSampler,
        micro_batch: int | None,
        workers: int,
        start_step: int,
        total_steps: int,
        pin_memory: bool = False,
        mixing: Mixing | None = None,
    ) -> None:
        if mixing is not None:
            assert sampler.pairs, "mixing needs shares that are cut at pairs"
            mixing.check(sampler.batch_size, micro_batch)
            micro_batch = micro_batch and micro_batch - micro_batch % 2
        self.dataset = _Samples(source, transform, sampler.seed, mixing)
        self.sampler = sampler
        self.micro_batch = micro_batch
        self.workers = workers
        self.steps = range(start_step, total_steps)
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        portions = _portions(self.dataset, self._fetches(), self.workers, self.pin_memory)
        try:
            for step in self.steps:
                yield [_whole(self.dataset.source, next(portions)) for _ in self._cuts(step)]
        finally:
            del portions  # ends the workers now, even while a traceback keeps this frame

    def _cuts(self, step: int) -> range:
        length = self.sampler.share_length(step)
        return range(0, length, self.micro_batch or length)

    def _fetches(self) -> Iterator[list[Address]]:
        for step in self.steps:
            share = self.sampler.share(step)
            cuts = self._cuts(step)
            yield from (share[start : start + cuts.step] for start in cuts)


class EvalLoader:
    """This rank's part of a source for evaluation and prediction.

    The source's order is cut into chunks of `chunk_size`, dealt whole to the ranks in turn; a rank may have none.
    A batch has the source's tensors, with "image" transformed, and "weight" (the sample's own or 1), "index"
    and "position".
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        chunk_size: int,
        world_size: int = 1,
        rank: int = 0,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = _Samples(source, transform, seed=0)
        self.chunk_size = chunk_size
        self.starts = range(rank * chunk_size, len(source), world_size * chunk_size)
        self.workers = min(workers, len(self.starts))
        self.pin_memory = pin_memory

    @property
    def chunks(self) -> int:
        """How many chunks this rank has."""
        return len(self.starts)

    def __len__(self) -> int:
        return self.chunks

    def __iter__(self) -> Iterator[Batch]:
        """One batch a chunk. Raises UserError if a sample is damaged, after looking for all others that are."""
        for portion in self.portions():
            yield _whole(self.dataset.source, portion)

    def portions(self) -> Iterator[Portion]:
        """One portion a chunk, with its damaged samples beside its batch instead of an error."""
        return _portions(self.dataset, self._fetches(), self.workers, self.pin_memory)

    def _fetches(self) -> Iterator[list[Address]]:
        for start in self.starts:
            stop = min(start + self.chunk_size, len(self.dataset.source))
            yield [Address(index, epoch=0, position=index) for index in range(start, stop)]


def _whole(source: Source, portion: Portion) -> Batch:
    if portion.damaged or portion.batch is None:
        raise damaged_error(source, portion.damaged)
    return portion.batch


def default_workers(device_type: str, local_world_size: int) -> int:
    """How many loader processes a rank should have, from the cores this process may use.

    CUDA: all of the rank's cores but one, which drives the GPU; at least one, to decode while the GPU computes.
    CPU: one where the rank has two cores or more, because the model's own threads use the others.
    """
    cores = usable_cores() // local_world_size
    if device_type == "cpu":
        return min(1, cores // 2)
    return min(max(1, cores - 1), _MOST_WORKERS)
