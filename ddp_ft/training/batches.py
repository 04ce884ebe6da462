"""Which samples a run's steps and evaluations take, and the loaders that bring them to this rank."""

import copy
import math
from collections.abc import Generator, Iterator

from ddp_ft.contracts import PROBE, Batch, LabelledSource, Transform
from ddp_ft.data.loader import EvalLoader, Reader, TrainLoader, chunks_of
from ddp_ft.data.packed_source import by_length, lengths_of
from ddp_ft.data.rng import derive_seed
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.training.run import Run


def training_order(run: Run) -> GlobalOrderSampler:
    """Return the order of the training samples, with this rank's share; in pairs if samples are mixed."""
    train, pairs = run.config.train, run.model.processor.pairs(run.config)
    order = _order(run, run.world, train.batch_size, run.config.seed, pairs)
    lengths = lengths_of(run.splits.train)
    if run.config.data.bucket_by_length and lengths is not None:
        order.group_by_length(lengths)
    return order


def head_order(run: Run, solo: World, phase: str) -> GlobalOrderSampler:
    """Return the order of the training samples' features; each rank takes all of them."""
    sizes = run.config.probe if phase == PROBE else run.config.train
    return _order(run, solo, sizes.batch_size, derive_seed(run.config.seed, *phase.encode()), pairs=False)


def _order(run: Run, world: World, batch_size: int, seed: int, pairs: bool) -> GlobalOrderSampler:
    samples, weights = len(run.splits.train), run.sampling
    return GlobalOrderSampler(samples, batch_size, world.size, world.rank, seed, weights=weights, pairs=pairs)


def training_source(run: Run) -> LabelledSource:
    """Return the training set; without its weights if the order follows them already, lest they count twice."""
    if run.config.data.sampling != "weighted":
        return run.splits.train
    source = copy.copy(run.splits.train)
    source.weights = None
    return source


def training_batches(
    run: Run, order: GlobalOrderSampler, micro_batch: int | None, start: int
) -> Generator[list[Batch], None, None]:
    """Yield this rank's micro-batches of each step from `start` on; the workers end with the generator."""
    reader = _reader(run, training_source(run), run.model.processor.train_transform(run.config))
    return iter(TrainLoader(reader, order, micro_batch, range(start, run.plan.total_steps), run.model.least))


def _reader(run: Run, source: LabelledSource, transform: Transform) -> Reader:
    return Reader(source, transform, run.plan.workers, pin_memory=run.world.device.type == "cuda")


def evaluation_batches(run: Run, source: LabelledSource) -> Iterator[Batch]:
    """Yield this rank's chunks of a source. Before each the ranks agree on whether to stop: equally often, since their
    numbers of chunks differ by one at most."""
    world, reader = run.world, _reader(run, source, run.model.processor.eval_transform())
    loader = EvalLoader(reader, EVAL_CHUNK, chunks_of(source, EVAL_CHUNK, world.size, world.rank), by_length(source))
    chunks = math.ceil(len(source) / EVAL_CHUNK)
    return run.agreement.in_rounds(loader, math.ceil(chunks / world.size))
