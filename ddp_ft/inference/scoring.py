"""Trained models on data: what reads it, and what computes predictions."""

from collections.abc import Sequence

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import Source
from ddp_ft.data.loader import EvalLoader, Reader, chunks_of
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.inference.asked import Asked
from ddp_ft.inference.trained_model import Trained

# For collectives of evaluation and prediction, which have no configuration of their own.
TIMEOUT_MINUTES = make_config().compute.timeout_minutes


def make_scorer(trained: Trained, world: World, most: int | None = None) -> Scorer:
    """What computes the model's predictions for batches of `make_loader`, `most` samples at a time."""
    prepare = trained.processor.on_device(world.device, trained.channels_last)
    return Scorer(trained.module, trained.call, trained.task, prepare, world, trained.precision, trained.views, most)


def make_loader(
    source: Source, trained: Trained, world: World, workers: int, only: Sequence[int] | None = None
) -> EvalLoader:
    """This rank's chunks of the source, or only those of these numbers, prepared for the model."""
    reader = Reader(source, trained.processor.eval_transform(), workers, pin_memory=world.device.type == "cuda")
    mine = chunks_of(source, EVAL_CHUNK, world.size, world.rank) if only is None else only
    return EvalLoader(reader, EVAL_CHUNK, mine)


def workers_of(asked: Asked, world: World, launch: Launch) -> int:
    """The loader processes of this rank: as many as are asked for, or suit the machine."""
    return default_workers(world.device.type, launch.local_world_size) if asked.workers is None else asked.workers
