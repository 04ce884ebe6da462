"""Computes the features of a data set: what the head is trained on while the backbone does not change."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ddp_ft.contracts import Address, Batch, Call, LabelledSource, Sample, ToDevice, Transform
from ddp_ft.data.batch import cut
from ddp_ft.data.loader import EvalLoader, Reader
from ddp_ft.data.rng import drawing_from
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.features.cache import ChunkStore
from ddp_ft.features.dataset import FeatureSet, one_thread
from ddp_ft.models.backbone import features as features_of
from ddp_ft.models.precision import autocast

# Images per forward pass on a CPU, in one thread: as fast as any larger number (docs/performance.md), in less memory.
FORWARD_ON_CPU = 16


@dataclass(frozen=True)
class AugmentedView:
    """A training transform whose random draws follow (seed, view, sample), whatever the loader's own seed is."""

    transform: Transform
    seed: int
    view: int

    def __call__(self, sample: Sample) -> Batch:
        """The sample, augmented."""
        place = int(torch.randint(2**62, ()))  # the loader has seeded the generator for the sample's position
        with drawing_from(self.seed, self.view, place):
            return self.transform(sample)

    def collate(self, samples: list[Batch]) -> Batch:
        """As the transform's."""
        return self.transform.collate(samples)

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """Return the batch as it is: samples whose features are stored are not mixed."""
        return batch


@dataclass(frozen=True)
class _Finished:
    """A transform after which `work` is applied to each batch, in the worker that reads it."""

    transform: Transform
    work: Callable[[Batch], Batch]

    def __call__(self, sample: Sample) -> Batch:
        return self.transform(sample)

    def collate(self, samples: list[Batch]) -> Batch:
        return self.transform.collate(samples)

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        return self.work(self.transform.finish(batch, addresses))


@dataclass(frozen=True)
class Extracted:
    """The features of a source under one transform, float32 (N, ...), and which sample is in each place, int64 (N,).
    `damaged`: how many stored chunks, of all ranks, were not whole. `error`: why this rank could not store its own."""

    features: Tensor
    chosen: Tensor
    damaged: int
    error: str


@dataclass(frozen=True)
class Extractor:
    """A frozen backbone and all that computing features needs.

    On a CPU each chunk is computed in one thread, in several worker processes at a time if `threads` and `workers`
    allow it: so its bits depend on neither, and no thread waits for another. `in_rounds(chunks, rounds)`: iterate
    chunks with a stop check before each of `rounds` (the same number on all ranks).
    """

    module: nn.Module
    head_path: str
    call: Call
    prepare: ToDevice
    world: World
    precision: str
    threads: int
    workers: int
    in_rounds: Callable[[Iterable[Batch], int], Iterator[Batch]]
    chunk: int = EVAL_CHUNK

    def extract(
        self, source: LabelledSource, transform: Transform, store: ChunkStore | None, common: bool
    ) -> Extracted:
        """Return the features of all samples, on every rank.

        Whole chunks are dealt to ranks in turn; each computes those of its own that the store does not hold. If the
        store is `common` to all ranks and took everything, they map it. Else each fills its rows of a table of zeros,
        and the table is summed over ranks: exact, since every row has one rank. Raises what `in_rounds` raises.
        """
        mine = range(self.world.rank, math.ceil(len(source) / self.chunk), self.world.size)
        missing = [chunk for chunk in mine if store is None or not store.holds(chunk)]
        kept: dict[int, Tensor] = {}
        moved: dict[int, int] = {}
        rounds = int(self.world.largest({"chunks": len(missing)})["chunks"])
        with closing(self._computed(source, transform, missing)) as computed:
            for batch in self.in_rounds(computed, rounds):
                rows, first = batch["features"], int(batch["position"][0])
                others = (batch["index"] != batch["position"]).nonzero().flatten().tolist()
                moved |= {first + place: int(batch["index"][place]) for place in others}
                # A damaged image must be found, and reported, at every start.
                if store is None or not store.write(first // self.chunk, rows, lasting=not others):
                    kept[first // self.chunk] = rows
        if store is not None:
            store.finish()
        damaged, error = (store.damaged, store.error) if store else (0, "")
        shortfall = bool(kept or error) or store is None or not common
        counts = self.world.sum(torch.tensor([shortfall, len(moved), damaged], dtype=torch.int64))
        if counts[0] or store is None:
            features = self._gathered(len(source), mine, kept, store)
        else:
            features = store.mapped(self._row_shape(kept, store))
        chosen = self._chosen(len(source), moved, bool(counts[1]))
        return Extracted(features, chosen, int(counts[2]), error)

    def _computed(
        self, source: LabelledSource, transform: Transform, chunks: list[int]
    ) -> Generator[Batch, None, None]:
        """Yield the batches of these chunks, with their "features" on the CPU instead of their inputs."""
        if not chunks:
            return
        self.module.eval()
        in_workers = self.world.device.type == "cpu" and self.threads > 1 and self.workers > 0
        workers = min(len(chunks), self.threads if in_workers else self.workers)
        seen = _Finished(transform, self._with_features) if in_workers else transform
        loader = EvalLoader(Reader(source, seen, workers, self.world.device.type == "cuda"), self.chunk, chunks)
        with one_thread(self.world.device.type == "cpu"), closing(iter(loader)) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield batch if in_workers else self._with_features(batch)

    @torch.no_grad()
    def _with_features(self, batch: Batch) -> Batch:
        portion = FORWARD_ON_CPU if self.world.device.type == "cpu" else self.chunk
        features = torch.cat([self._features(part) for part in cut([batch], portion)])
        return {"features": features.cpu(), "index": batch["index"], "position": batch["position"]}

    def _features(self, batch: Batch) -> Tensor:
        with autocast(self.world.device, self.precision):
            return features_of(self.module, self.head_path, self.call, self.prepare(batch)).float()

    def _row_shape(self, kept: dict[int, Tensor], store: ChunkStore | None) -> tuple[int, ...]:
        """The shape of a row, as rank 0 knows it, which always has the first chunk."""
        return self.world.from_main(
            lambda: tuple(next(iter(kept.values())).shape[1:]) if kept else (store.shape if store else None) or ()
        )

    def _gathered(self, samples: int, mine: range, kept: dict[int, Tensor], store: ChunkStore | None) -> Tensor:
        table = torch.zeros(samples, *self._row_shape(kept, store), device=self.world.device)
        for chunk in mine:
            rows = kept.get(chunk)
            if rows is None:
                assert store is not None
                rows = store.read(chunk)
            assert rows is not None, "the chunk was there a moment ago"
            table[chunk * self.chunk : chunk * self.chunk + len(rows)] = rows.to(table.device)
        return self.world.sum(table)

    def _chosen(self, samples: int, moved: dict[int, int], any_moved: bool) -> Tensor:
        """Which sample is in each place: the place's own, or its replacement."""
        chosen = torch.arange(samples)
        if any_moved:
            shifts = torch.zeros(samples, dtype=torch.int64)
            for place, index in moved.items():
                shifts[place] = index - place
            chosen += self.world.sum(shifts)
        return chosen


def labelled(views: Sequence[Extracted], source: LabelledSource, device: torch.device, on_device: int) -> FeatureSet:
    """Return the features with their samples' targets and weights; on the device if they take `on_device` bytes at
    most. A sample that cannot be read has the same replacement in all views."""
    chosen = views[0].chosen
    targets = torch.from_numpy(np.asarray(source.targets))[chosen].to(device)
    weights = torch.ones(len(chosen)) if source.weights is None else torch.from_numpy(source.weights)[chosen].float()
    size = sum(view.features.numel() * 4 for view in views)
    tables = tuple(view.features.to(device) if size <= on_device else view.features.cpu() for view in views)
    return FeatureSet(tables, targets, weights.to(device))
