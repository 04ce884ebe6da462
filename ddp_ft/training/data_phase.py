"""Training on the data itself: the model in DDP, unfrozen stage by stage, and compiled if that is asked for."""

import gc
from collections.abc import Generator
from dataclasses import replace

import torch

from ddp_ft.contracts import NO_VIEWS, TRAIN, Batch, Evaluation, LabelledSource, Log, Views
from ddp_ft.distributed.agreement import Decision
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.models.freezing import freeze_parameters
from ddp_ft.training.batches import evaluation_batches, training_batches, training_order
from ddp_ft.training.compile import OFF, compile_phase, eager
from ddp_ft.training.learners import DataLearner, data_learner, mode_of, penalties_of, replica_of
from ddp_ft.training.optim import extend_groups, groups_of
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import StepSums


class DataPhase(Phase):
    """The training of the whole model. Ranks share each batch and sum their gradients."""

    learner: DataLearner
    is_on_data = True

    def __init__(self, run: Run, state: TrainState) -> None:
        super().__init__(run, TRAIN, data_learner(run, state), training_order(run), noise=run.world.rank)
        self._progress = state.progress
        self._compiled_for: tuple[int, int | None] | None = None

    def batches(self, state: TrainState) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each step from the present one on."""
        return training_batches(self.run, self.sampler, state.micro_batch, state.progress.step)

    def measure(self) -> Evaluation:
        """Evaluate the present weights on the validation set. Collective; may raise StopAgreed."""
        return measure(self.run, self.run.splits.val)

    def decide(self, state: TrainState, sums: StepSums, flags: list[float], flush: bool) -> list[Decision]:
        """Return the decisions that became known; `sums`, with the flags among them, are those of all ranks."""
        return self.run.agreement.decide(state.progress.step, sums.numbers(), flush)

    def prepare(self, state: TrainState, log: Log) -> None:
        """Enter the next stage of unfreezing, and compile for it, if either is due."""
        if self.stage_at(state.progress.step) > state.progress.stage:
            self.enter_stage(state, state.progress.stage + 1)
            log(describe_stage(self.run, state.progress.stage))
        needed = (state.progress.stage, state.micro_batch)
        if self.run.config.compute.compile != OFF and needed != self._compiled_for:
            again, self._compiled_for = self._compiled_for is not None, needed
            compile_phase(self, state, log, again)

    def stage_at(self, step: int) -> int:
        """Return the stage of unfreezing of a step, counted from 0."""
        epoch = step // self.run.plan.steps_per_epoch
        return max(number for number, stage in enumerate(self.run.stages) if stage.epoch <= epoch)

    def enter_stage(self, state: TrainState, stage: int) -> None:
        """Unfreeze what learns in that stage; the optimizer keeps the state of the other parameters."""
        run = self.run
        self._drop_replica()
        freeze_parameters(run.model.module, run.stages[stage].frozen)
        extend_groups(state.optimizer, groups_of(run.model, run.config.optim, run.plan.lr))
        self.learner.mode, self.learner.penalties = mode_of(run), penalties_of(run)
        self._make_replica()
        state.progress.stage = stage

    def renew(self) -> None:
        """Make the replica anew: DDP cannot be used after a backward pass that broke off on some rank."""
        self._drop_replica()
        if self.run.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self._make_replica()

    def search_unused(self) -> None:
        """Let each step look for parameters without a gradient, from here on."""
        self._progress.searches_unused = True
        self.renew()

    def _drop_replica(self) -> None:
        self.learner.replica = self.run.model.module
        gc.collect()  # the hooks of the old DDP stay on the parameters as long as it lives

    def _make_replica(self) -> None:
        self.learner.replica = replica_of(self.run, self._progress)
        self.learner.begin()


def describe_stage(run: Run, number: int) -> str:
    """A line that says what learns in that stage of unfreezing, counted from 0."""
    stage, sizes = run.stages[number], {name: each.numel() for name, each in run.model.module.named_parameters()}
    total = sum(sizes.values())
    learning = total - sum(sizes[name] for name in stage.frozen)
    what = f"{learning:,} of {total:,} parameters learn" if stage.frozen else f"all {total:,} parameters learn"
    frozen = f" (frozen: {stage.parts})" if stage.frozen else ""
    return f"Stage {number + 1} of {len(run.stages)}, from epoch {stage.epoch + 1} on: {what}{frozen}."


def measure(run: Run, source: LabelledSource, views: str = NO_VIEWS) -> Evaluation:
    """Evaluate the bare module over a source, by the mean over these views of each sample; rank 0 alone has the
    outputs. Collective; may raise StopAgreed."""
    seen, run = (None, run) if views == NO_VIEWS else _viewed(run, views)
    scorer = Scorer(run.model.module, run.model.call, run.task, run.prepare, run.world, run.plan.precision, seen)
    with eager(run.model.module):
        return scorer.evaluate(evaluation_batches(run, source), len(source))


def _viewed(run: Run, views: str) -> tuple[Views, Run]:
    """The views, and the run with a processor that makes what they are cut from."""
    processor, seen = run.model.processor.viewed(views)
    prepare = processor.on_device(run.world.device, run.plan.channels_last)
    return seen, replace(run, model=replace(run.model, processor=processor), prepare=prepare)
