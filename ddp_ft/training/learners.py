"""What a step learns from: batches of the data by the whole model, or stored features by its head."""

from dataclasses import dataclass, field

from torch import nn

from ddp_ft.contracts import Batch, ToDevice
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.models.backbone import call_with_features, head_module
from ddp_ft.models.freezing import TrainingMode
from ddp_ft.training.gradients import Penalties
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import Learner


@dataclass
class DataLearner(Learner):
    """Learns from batches of the data, which `to_device` brings there; `mode` keeps frozen parts in evaluation mode."""

    to_device: ToDevice = field(kw_only=True)
    mode: TrainingMode = field(kw_only=True)

    def prepare(self, batch: Batch) -> Batch:
        """As the processor has it on the device."""
        return self.to_device(batch)

    def set_training(self) -> None:
        """Training mode, but for what is frozen."""
        self.mode()


@dataclass
class HeadLearner(Learner):
    """Learns from stored features. Each rank is alone: what one did about a lack of memory, the others would not."""

    recovers: bool = field(default=False, kw_only=True)


def data_learner(run: Run, state: TrainState) -> DataLearner:
    """The learner of the parts of the model that learn at present."""
    return DataLearner(
        replica=replica_of(run),
        task=run.task,
        optimizer=state.optimizer,
        scaler=state.scaler,
        world=run.world,
        precision=run.plan.precision,
        bounds=run.config.train,
        penalties=penalties_of(run),
        head=_head_parameters(run),
        recomputes=run.config.compute.recompute,
        to_device=run.prepare,
        mode=mode_of(run),
    )


def head_learner(run: Run, state: TrainState, solo: World) -> HeadLearner:
    """The learner of the head alone, in the world of this rank alone."""
    return HeadLearner(
        replica=Trainee(head_module(run.model.module, run.model.head_path or ""), call_with_features),
        task=run.task,
        optimizer=state.optimizer,
        scaler=state.scaler,
        world=solo,
        precision=run.plan.precision,
        bounds=run.config.train,
        penalties=penalties_of(run),
        head=_head_parameters(run),
    )


def replica_of(run: Run) -> nn.Module:
    """The model as a step calls it: in DDP, if there are several processes."""
    model, compression = run.model, run.config.compute.compress_gradients
    return replicate(model.module, model.call, run.world, run.distributed, compression)


def mode_of(run: Run) -> TrainingMode:
    """The mode that the model is trained in, with what is frozen at present."""
    return TrainingMode(run.model.module, run.config.model.batch_norm)


def penalties_of(run: Run) -> Penalties:
    """The penalties on all parameters that the model has."""
    return Penalties(run.model.module, run.model.head, run.config.optim, run.anchors)


def _head_parameters(run: Run) -> list[nn.Parameter]:
    return [parameter for name, parameter in run.model.module.named_parameters() if name in run.model.head]
