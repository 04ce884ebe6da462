"""What a run consists of, and what of it changes as it goes on."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import TRAIN, Batch, BuiltModel, Evaluation, Task
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.splits.record import Splits
from ddp_ft.distributed.agreement import Agreement, Decision
from ddp_ft.distributed.world import World
from ddp_ft.models.freezing import Stage, TrainingMode
from ddp_ft.run_folder.background_writer import BackgroundWriter
from ddp_ft.run_folder.checkpoints import Checkpoints
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.ema import Ema
from ddp_ft.training.plan import Plan
from ddp_ft.training.profiler import StepTrace
from ddp_ft.training.progress import LossWindow, Progress
from ddp_ft.training.step import Learner, StepSums


@dataclass(frozen=True)
class Request:
    """What is wanted besides the recipe. `layers` are the settings as given, later ones winning.

    `tune`: measure what the layers leave open. `tuned` and `measured` are what an earlier start found, as in Plan.
    """

    run_dir: Path
    layers: tuple[Mapping[str, Any], ...] = ()
    extend: bool = False
    dry_run: bool = False
    tune: bool = False
    tuned: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Mapping[str, Any]] = ()

    def config(self, recipe: str | None = None) -> RunConfig:
        """The whole configuration; `recipe` is what auto became."""
        return make_config(*self.layers, recipe=recipe, tuned=self.tuned)


@dataclass
class Phase:
    """A stretch of training: how its steps are made, and how their result is measured.

    `rate` gives the base learning rate from (step, total steps). `noise` is the stream of random masks: the rank, or
    0 where all ranks do the same. `batches` gives this rank's micro-batches of each step from one on. `agree` makes one
    decision for all ranks of a step's sums and this rank's flags, and of that which is known gives those not given yet;
    of all, if it is the end of a stretch.
    """

    name: str
    learner: Learner
    sampler: GlobalOrderSampler
    total_steps: int
    rate: Callable[[int, int], float]
    noise: int
    batches: Callable[[int], Generator[list[Batch], None, None]]
    measure: Callable[[], Evaluation]
    agree: Callable[[StepSums, list[float], bool], list[Decision]]


@dataclass
class Job:
    """The parts of a run, composed. What stands behind `training_mode` changes as the run goes on.

    `score` is that of an evaluation of the present step, larger being better. `pending` is the state of a checkpoint
    that the phase has still to take up. `launched` is when this launch began (seconds since 1970). `anchors` are the
    weights that L2-SP pulls towards, `sampling` those that the order is drawn by. `compiled_for` are the stage of
    unfreezing and the micro-batch that what is compiled is for. `saved_at`: when the newest checkpoint was made, or the
    phase began (time.monotonic).
    """

    config: RunConfig
    world: World
    distributed: bool
    launched: float
    folder: RunFolder
    splits: Splits
    task: Task
    built: BuiltModel
    plan: Plan
    why_recipe: str
    stages: list[Stage]
    training_mode: TrainingMode
    optimizer: torch.optim.Optimizer
    anchors: dict[str, Tensor]
    sampling: Tensor | None
    ema: Ema | None
    prepare: DeviceTransform
    progress: Progress
    window: LossWindow
    checkpoints: Checkpoints
    agreement: Agreement
    trace: StepTrace
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    phase: Phase | None = None
    score: float | None = None
    pending: dict[str, Any] = field(default_factory=dict)
    compiled_for: tuple[int, int | None] | None = None
    saved_at: float = 0.0

    @property
    def metric(self) -> str:
        """The metric that decides which model is best."""
        return self.config.eval.metric or self.task.primary_metric

    @property
    def epoch(self) -> float:
        """Epochs of the present phase that have passed."""
        return self.progress.step / self.phase.sampler.steps_per_epoch if self.phase else 0.0

    @property
    def steps_of_phase(self) -> int:
        """How many steps the present phase has in all."""
        assert self.phase is not None
        is_bounded = self.phase.name == TRAIN and self.progress.budget is not None
        return (self.progress.budget or 0) if is_bounded else self.phase.total_steps
