"""A trained model on a source: its loader, and what computes predictions."""

from collections.abc import Sequence

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import Source
from ddp_ft.data.loader import EvalLoader, Reader, chunks_of
from ddp_ft.data.workers import default_workers
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.inference.trained_model import Trained

# For collectives of evaluation and prediction, which have no configuration of their own.
TIMEOUT_MINUTES = make_config().compute.timeout_minutes


def make_scorer(trained: Trained, world: World) -> Scorer:
    """What computes the model's predictions for batches of `make_loader`."""
    prepare = trained.processor.on_device(world.device, trained.channels_last)
    return Scorer(trained.module, trained.call, trained.task, prepare, world, trained.precision, trained.views)


def make_loader(
    source: Source, trained: Trained, world: World, launch: Launch, only: Sequence[int] | None = None
) -> EvalLoader:
    """This rank's chunks of the source, or only those of these numbers, prepared for the model."""
    workers = default_workers(world.device.type, launch.local_world_size)
    reader = Reader(source, trained.processor.eval_transform(), workers, pin_memory=world.device.type == "cuda")
    mine = chunks_of(source, EVAL_CHUNK, world.size, world.rank) if only is None else only
    return EvalLoader(reader, EVAL_CHUNK, mine)
