"""From addresses to batches, in this process or in forked workers, with the same result."""

import itertools
import signal
import sys
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ddp_ft.contracts import Address, BadSample, Batch, Source, StorageFault, Transform
from ddp_ft.data.bad_samples.find import damaged_error, reason_of, storage_error
from ddp_ft.data.bad_samples.replace import Lenient
from ddp_ft.data.micro_batches import cut_share
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.rng import drawing_from
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.stop_request import STOP_SIGNALS
from ddp_ft.errors import printable


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

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __getitem__(self, address: Address) -> _Sample:
        try:
            return self._read(address)
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


@dataclass(frozen=True)
class Reader:
    """Reads and transforms samples of a source in `workers` processes; 0: in this process."""

    source: Source
    transform: Transform
    workers: int = 0
    pin_memory: bool = False

    def portions(self, fetches: Iterable[list[Address]], seed: int) -> Generator[Portion, None, None]:
        """The portions of the fetches, in their order; workers read ahead two fetches each. Raises their failures."""
        with warnings.catch_warnings():
            # More workers than cores is the caller's choice, and Python >= 3.12 warns of any fork beside threads.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            dataset = _Samples(self.source, self.transform, seed)
            loader: DataLoader[Any] = DataLoader(
                dataset,
                batch_sampler=fetches,  # any iterable of lists of keys does
                num_workers=self.workers,
                collate_fn=dataset.collate,
                pin_memory=self.pin_memory,
                worker_init_fn=_ignore_signals,
                # Forked workers start at once; spawned ones import torch for seconds.
                multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
                generator=torch.Generator(),  # else it draws a seed from the caller's
            )
            portions = iter(loader)
        try:
            for portion in portions:
                if portion.failure:
                    raise portion.failure
                yield portion
        finally:
            del portions  # ends the workers now, even while a traceback keeps this frame


def _ignore_signals(_worker: int) -> None:
    """A stop request reaches the whole process group; the parent decides, and the workers end when it does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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
        with closing(self.reader.portions(self._fetches(), self.sampler.seed)) as portions:
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

    The source's order is cut into chunks of `chunk_size`; see `chunks_of`. A batch has "weight" (the sample's own or
    1), "position" (the place in the source's order) and "index" (of the sample that was read, which replaces a damaged
    one if the source is `Lenient`).
    """

    def __init__(self, reader: Reader, chunk_size: int, numbers: Iterable[int] | None = None) -> None:
        chosen = chunks_of(reader.source, chunk_size) if numbers is None else numbers
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
        return self.reader.portions(self._fetches(), seed=0)

    def _fetches(self) -> Iterator[list[Address]]:
        for start in self.starts:
            stop = min(start + self.chunk_size, len(self.reader.source))
            yield [Address(index, epoch=0, position=index) for index in range(start, stop)]


def chunks_of(source: Source, chunk_size: int, world_size: int = 1, rank: int = 0) -> range:
    """The numbers of a rank's chunks: whole chunks are dealt to the ranks in turn; a rank may have none."""
    return range(rank, -(-len(source) // chunk_size), world_size)


def _whole(source: Source, portion: Portion) -> Batch:
    if portion.replaced and isinstance(source, Lenient):
        source.report(portion.replaced)
    if portion.damaged or portion.batch is None:
        raise damaged_error(source, portion.damaged)
    return portion.batch
