"""Loaders of images in a line, from what is done to an image."""

from collections.abc import Callable, Iterable
from typing import Any

from ddp_ft.contracts import Source
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.processor import ImageTransform
from ddp_ft.data.loader import EvalLoader, Reader, TrainLoader, chunks_of
from ddp_ft.data.sampler import GlobalOrderSampler


def train_loader(
    source: Source, seen: Callable[[Any], Any], sampler: GlobalOrderSampler, micro_batch: int | None = None,
    workers: int = 0, start: int = 0, total: int = 1, mixing: Mixing | None = None,
) -> TrainLoader:  # fmt: skip
    reader = Reader(source, ImageTransform(seen, mixing, sampler.seed), workers)
    return TrainLoader(reader, sampler, micro_batch, range(start, total))


def eval_loader(
    source: Source, seen: Callable[[Any], Any], chunk: int, world: int = 1, rank: int = 0, workers: int = 0,
    only: Iterable[int] | None = None,
) -> EvalLoader:  # fmt: skip
    numbers = chunks_of(source, chunk, world, rank) if only is None else only
    return EvalLoader(Reader(source, ImageTransform(seen), workers), chunk, numbers)
