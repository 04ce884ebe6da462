"""A run as it was composed: what its phases, its loop and its reports read, and never replace."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import PROBE, BuiltModel, Task, ToDevice
from ddp_ft.data.splits.record import Splits
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.world import World
from ddp_ft.models.freezing import Stage
from ddp_ft.run_folder.background_writer import BackgroundWriter
from ddp_ft.run_folder.checkpoints import Checkpoints, Score, score_of
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.plan import Plan
from ddp_ft.training.state import EMA, RAW


@dataclass(frozen=True)
class Run:
    """The parts of a run. What changes during training is in its TrainState.

    `launched` is when this launch began (seconds since 1970). `anchors` are the weights that L2-SP pulls towards,
    `sampling` those that the order is drawn by. `prepare` brings batches to the device.
    """

    config: RunConfig
    world: World
    distributed: bool
    launched: float
    folder: RunFolder
    splits: Splits
    task: Task
    model: BuiltModel
    plan: Plan
    why_recipe: str
    stages: list[Stage]
    anchors: dict[str, Tensor]
    sampling: Tensor | None
    prepare: ToDevice
    checkpoints: Checkpoints
    agreement: Agreement
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)

    @property
    def metric(self) -> str:
        """The metric that decides which model is best."""
        return self.config.eval.metric or self.task.primary_metric

    def score(self, metrics: Mapping[str, float]) -> Score:
        """Return how good a model with these metrics is: by the metric that decides, of equals by the loss."""
        return score_of(self.task, self.metric, metrics)

    def evaluated(self, phase: str) -> tuple[str, ...]:
        """Return which weights are evaluated: those of the model, their moving average, or both, if it was asked for
        by its decay."""
        if phase == PROBE or not self.plan.ema_decay:
            return (RAW,)
        return (EMA,) if self.config.ema.decay is None else (RAW, EMA)

    def wishes(self, save: bool) -> list[float]:
        """Return this rank's flags for the next step, to be summed over ranks: see Agreement."""
        damage = self.splits.quarantine is not None and self.splits.quarantine.has_news
        return self.agreement.flags(save, self.writer.failures, damage)
