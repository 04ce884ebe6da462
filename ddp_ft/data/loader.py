"""From addresses to batches, in this process or in forked workers, with the same result."""

import itertools
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ddp_ft.contracts import Address, BadSample, Batch, Source, StorageFault, Transform
from ddp_ft.data.bad_samples.find import damaged_error, reason_of, storage_error
from ddp_ft.data.bad_samples.replace import Lenient
from ddp_ft.data.micro_batches import cut_share
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.rng import drawing_from
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.transfer import File, Parcel, opened_files, pack
from ddp_ft.data.workers import Batches, prepare_worker
from ddp_ft.errors import UserError, printable


class Portion(NamedTuple):
    """One collated fetch: `batch` of the readable samples (None if there are none), `damaged` {index: reason}.

    `replaced` are damaged ones that another sample replaces; `failure` is any other exception, for the parent to raise.
    """

    batch: Batch | None
    damaged: dict[int, str]
    replaced: dict[int, str] = {}  # noqa: RUF012  (never written to)
    failure: Exception | None = None


class SampleError(RuntimeError):
    """Reading or transforming a sample failed, but the sample is not damaged; the message names it."""


class _Sample(NamedTuple):
    """The sample `chosen` that was read for an address, with its tensors; None if none could be read."""

    address: Address
    chosen: int
    tensors: Batch | None
    damaged: dict[int, str]
    failure: Exception | None = None


class _Samples(Dataset[_Sample]):
    """Samples by address, or the reasons why they cannot be read: workers return no exceptions."""

    def __init__(self, source: Source, transform: Transform, seed: int, files: Sequence[Sequence[File]]) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.files = files  # of each worker

    def __getitem__(self, address: Address) -> _Sample:
        try:
            return self._read(address)
        except UserError as error:  # from code of the user's own
            name = printable(self.source.name(address.index))
            return _Sample(address, address.index, None, {}, UserError(f"{name}: {error.message}", error.hint))
        except Exception as error:  # from a faulty transform or source, whose message does not name the file
            name = printable(self.source.name(address.index))
            failure = SampleError(f"{name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
            return _Sample(address, address.index, None, {}, failure)

    def _read(self, address: Address) -> _Sample:
        """The sample, or the first of its replacements that can be read."""
        source, damaged = self.source, dict[int, str]()
        others = source.replacements(address.index) if isinstance(source, Lenient) else ()
        for index in itertools.chain([address.index], others):
            try:
                sample = open_sample(source, index)
                with drawing_from(self.seed, address.epoch, address.position):
                    return _Sample(address, index, self.transform(sample), damaged)
            except BadSample as error:
                if isinstance(source, Lenient) and isinstance(error, StorageFault):
                    return _Sample(address, index, None, {}, storage_error(source, index, error))
                damaged[index] = reason_of(source, index, error)
        return _Sample(address, address.index, None, damaged)

    def collate(self, samples: list[_Sample]) -> Portion:
        """The samples of a fetch as one batch."""
        good = [(sample, sample.tensors) for sample in samples if sample.tensors is not None]
        damaged = {i: reason for sample in samples if sample.tensors is None for i, reason in sample.damaged.items()}
        replaced = {i: reason for sample, _ in good for i, reason in sample.damaged.items()}
        failure = next((sample.failure for sample in samples if sample.failure), None)
        if failure or not good:
            return Portion(None, damaged, replaced, failure)
        addresses = [sample.address for sample, _ in good]
        batch = self.transform.collate([tensors for _, tensors in good])
        counts = torch.tensor([0.0 if address.ghost else 1.0 for address in addresses])
        batch["weight"] = counts * batch["weight"].float() if "weight" in batch else counts
        batch["index"] = torch.tensor([sample.chosen for sample, _ in good])
        batch["position"] = torch.tensor([address.position for address in addresses])
        return Portion(batch if damaged else self.transform.finish(batch, addresses), damaged, replaced)

    def sent(self, samples: list[_Sample]) -> "_Sent":
        """In a worker: the samples of a fetch, ready to be sent."""
        try:
            portion, worker = self.collate(samples), get_worker_info()
            files = self.files[worker.id] if worker and self.files else []
            return _Sent(portion._replace(batch=None), None if portion.batch is None else pack(portion.batch, files))
        except Exception as error:  # from a faulty transform
            failure = SampleError(f"a batch: {type(error).__name__}: {error}\n{traceback.format_exc()}")
            return _Sent(Portion(None, {}, failure=failure), None)


@dataclass(frozen=True)
class _Sent:
    """A portion as it comes from a worker: its batch, if it has one, is in a parcel."""

    rest: Portion
    parcel: Parcel | None

    def portion(self, pinned: bool = False) -> Portion:
        """The portion, in memory of this process. Call it once."""
        return self.rest if self.parcel is None else self.rest._replace(batch=self.parcel.unpacked(pinned))

    def pin_memory(self) -> Portion:
        """The portion in pinned memory: torch calls this in the thread that receives, if memory is to be pinned."""
        return self.portion(pinned=True)


@dataclass(frozen=True)
class Reader:
    """Reads and transforms samples of a source in `workers` processes; 0: in this process."""

    source: Source
    transform: Transform
    workers: int = 0
    pin_memory: bool = False

    def portions(self, fetches: Callable[[], Iterable[list[Address]]], seed: int) -> Generator[Portion, None, None]:
        """The portions of what `fetches` returns, in that order; workers read ahead two fetches each. Raises their
        failures."""
        with opened_files(self.workers) as files:
            samples = _Samples(self.source, self.transform, seed, files)
            with closing(Batches(lambda workers: self._loader(samples, fetches(), workers), self.workers)) as received:
                for each in received:
                    portion = each.portion() if isinstance(each, _Sent) else each
                    if portion.failure:
                        raise portion.failure
                    yield portion

    def _loader(self, samples: "_Samples", fetches: Iterable[list[Address]], workers: int) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_sampler=fetches,  # any iterable of lists of keys does
            num_workers=workers,
            collate_fn=samples.sent if workers else samples.collate,
            pin_memory=self.pin_memory,
            worker_init_fn=prepare_worker,
            # Forked workers start at once; spawned ones import torch for seconds.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else it draws a seed from the caller's
        )


@dataclass(frozen=True)
class TrainLoader:
    """This rank's share of each of these steps, as a list of micro-batches.

    A batch is what the reader's transform returns, with "weight" (float32; the sample's own or 1, 0 for a ghost),
    "index" (of the sample that was read) and "position" (int64). A sample draws from torch's CPU generator, seeded by
    (seed, epoch, position). `micro_batch` is the most samples of a micro-batch, rounded down to an even number if the
    sampler has pairs; None: the whole share; `least` is as in `cut_share`. The workers run once over all steps: none
    waits between two epochs. In a `Lenient` source others replace damaged samples, and are augmented as those would be.

    Iterating raises UserError if a sample is damaged, after reading all others to list the damaged ones.
    """

    reader: Reader
    sampler: GlobalOrderSampler
    micro_batch: int | None
    steps: range
    least: int = 1

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Generator[list[Batch], None, None]:
        with closing(self.reader.portions(self._fetches, self.sampler.seed)) as portions:
            for step in self.steps:
                yield [_whole(self.reader.source, next(portions)) for _ in self._cuts(step)]

    def _cuts(self, step: int) -> list[range]:
        return cut_share(self.sampler.share_length(step), self.micro_batch, self.sampler.pairs, self.least)

    def _fetches(self) -> Iterator[list[Address]]:
        for step in self.steps:
            share = self.sampler.share(step)
            yield from (share[places.start : places.stop] for places in self._cuts(step))


class EvalLoader:
    """The chunks of a source with these numbers, for evaluation and prediction; all if None.

    The source's order, or that `order` of its samples (int64, N), is cut into chunks of `chunk_size`; see `chunks_of`.
    A batch has "weight" (the sample's own or 1), "position" (the place in the source's order) and "index" (of the
    sample that was read, which replaces a damaged one if the source is `Lenient`).
    """

    def __init__(
        self,
        reader: Reader,
        chunk_size: int,
        numbers: Iterable[int] | None = None,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        chosen = chunks_of(reader.source, chunk_size) if numbers is None else numbers
        self.order = np.arange(len(reader.source)) if order is None else order
        self.chunk_size = chunk_size
        self.starts = [number * chunk_size for number in chosen]
        self.reader = replace(reader, workers=min(reader.workers, len(self.starts)))

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Batch]:
        """One batch for each chunk. UserError if a sample is damaged, as in TrainLoader."""
        with closing(self.portions()) as portions:
            for portion in portions:
                yield _whole(self.reader.source, portion)

    def portions(self) -> Generator[Portion, None, None]:
        """One portion for each chunk, with its damaged samples instead of an error."""
        return self.reader.portions(self._fetches, seed=0)

    def _fetches(self) -> Iterator[list[Address]]:
        for start in self.starts:
            yield [
                Address(index, epoch=0, position=index)
                for index in self.order[start : start + self.chunk_size].tolist()
            ]


def chunks_of(source: Source, chunk_size: int, world_size: int = 1, rank: int = 0) -> range:
    """The numbers of a rank's chunks: whole chunks are dealt to the ranks in turn; a rank may have none."""
    return range(rank, -(-len(source) // chunk_size), world_size)


def _whole(source: Source, portion: Portion) -> Batch:
    if portion.replaced and isinstance(source, Lenient):
        source.report(portion.replaced)
    if portion.damaged or portion.batch is None:
        raise damaged_error(source, portion.damaged)
    return portion.batch
