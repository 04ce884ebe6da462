"""What a step learns from: batches of the data by the whole model, or stored features by its head."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from ddp_ft.contracts import Batch, ToDevice
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.models.backbone import call_with_features, head_module
from ddp_ft.models.freezing import TrainingMode
from ddp_ft.training.gradients import Penalties
from ddp_ft.training.progress import Progress
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import Learner

L = TypeVar("L", bound=Learner)


@dataclass
class DataLearner(Learner):
    """Learns from batches that `to_device` brings to the device; `mode` keeps frozen parts in evaluation mode."""

    to_device: ToDevice = field(kw_only=True)
    mode: TrainingMode = field(kw_only=True)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as the processor has it on the device."""
        return self.to_device(batch)

    def set_training(self) -> None:
        """Put into training mode all but what is frozen."""
        self.mode()


def data_learner(run: Run, state: TrainState) -> DataLearner:
    """Return the learner of the parts of the model that learn at present."""
    more = {"recomputes": run.config.compute.recompute, "to_device": run.prepare, "mode": mode_of(run)}
    return _make(DataLearner, run, state, replica_of(run, state.progress), run.world, **more)


def head_learner(run: Run, state: TrainState) -> Learner:
    """Return the learner of the head alone, on stored features, in a world of this rank alone. It does not recover from
    a lack of memory, since the other ranks would not know of it."""
    head = Trainee(head_module(run.model.module, run.model.head_path or ""), call_with_features)
    return _make(Learner, run, state, head, World(0, 1, 0, run.world.device), recovers=False)


def _make(kind: type[L], run: Run, state: TrainState, replica: nn.Module, world: World, **more: Any) -> L:
    head = [parameter for name, parameter in run.model.module.named_parameters() if name in run.model.head]
    return kind(
        replica, run.task, state.optimizer, state.scaler, world, run.plan.precision, run.config.train,
        penalties_of(run), head, **more,
    )  # fmt: skip


def replica_of(run: Run, progress: Progress) -> nn.Module:
    """Return the model as a step calls it: in DDP, if there are several processes."""
    model, compression = run.model, run.config.compute.compress_gradients
    trainee = Trainee(model.module, model.call, model.unused)
    return replicate(trainee, run.world, run.distributed, compression, progress.searches_unused)


def mode_of(run: Run) -> TrainingMode:
    """Return the mode that the model is trained in, with what is frozen at present."""
    return TrainingMode(run.model.module, run.config.model.batch_norm)


def penalties_of(run: Run) -> Penalties:
    """Return the penalties on all parameters of the model."""
    return Penalties(run.model.module, run.model.head, run.config.optim, run.anchors)
