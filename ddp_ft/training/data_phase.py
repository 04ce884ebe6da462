"""Training on the data itself: the model in DDP, let learn part by part, and compiled where that is wanted."""

import gc
from collections.abc import Generator

import torch

from ddp_ft.contracts import TRAIN, Batch, Evaluation, Say
from ddp_ft.distributed.agreement import Decision
from ddp_ft.models.freezing import freeze_parameters
from ddp_ft.training.batches import training_batches, training_order
from ddp_ft.training.compile import compile_phase, wanted_code
from ddp_ft.training.learners import DataLearner, data_learner, mode_of, penalties_of, replica_of
from ddp_ft.training.measure import measure
from ddp_ft.training.optim import extend_groups, groups_of
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import StepSums


class DataPhase(Phase):
    """The whole recipe. Ranks share each batch and sum their gradients."""

    learner: DataLearner
    is_on_data = True

    def __init__(self, run: Run, state: TrainState) -> None:
        super().__init__(run, TRAIN, data_learner(run, state), training_order(run), noise=run.world.rank)
        self._compiled_for: tuple[int, int | None] | None = None

    def batches(self, state: TrainState) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each step from the present one on."""
        return training_batches(self.run, self.sampler, state.micro_batch, state.progress.step)

    def measure(self) -> Evaluation:
        """Evaluate the present weights on the validation set. Collective; may raise StopAgreed."""
        return measure(self.run, self.run.splits.val)

    def decide(self, state: TrainState, sums: StepSums, flags: list[float], flush: bool) -> list[Decision]:
        """The sums are those of all ranks, and so are the flags among them."""
        return self.run.agreement.decide(state.progress.step, sums.numbers(), flush)

    def prepare(self, state: TrainState, say: Say) -> None:
        """Enter the next stage of unfreezing, and compile for it, where either is due."""
        if self.stage_at(state.progress.step) > state.progress.stage:
            self.enter_stage(state, state.progress.stage + 1)
        wanted = wanted_code(self, state)
        if wanted != self._compiled_for:
            again, self._compiled_for = self._compiled_for is not None, wanted
            compile_phase(self, state, say, again)

    def stage_at(self, step: int) -> int:
        """Which stage of unfreezing a step, counted from 0, belongs to."""
        epoch = step // self.run.plan.steps_per_epoch
        return max(number for number, stage in enumerate(self.run.stages) if stage.epoch <= epoch)

    def enter_stage(self, state: TrainState, stage: int) -> None:
        """Let those parts of the model learn that learn in that stage; the optimizer keeps the state of the others."""
        run = self.run
        self._let_replica_go()
        freeze_parameters(run.model.module, run.stages[stage].frozen)
        extend_groups(state.optimizer, groups_of(run.model, run.config.optim, run.plan.lr))
        self.learner.mode, self.learner.penalties = mode_of(run), penalties_of(run)
        self._begin_anew()
        state.progress.stage = stage

    def renew(self) -> None:
        """After a step that some rank could not finish: DDP cannot be used after a backward pass that broke off."""
        self._let_replica_go()
        if self.run.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self._begin_anew()

    def _let_replica_go(self) -> None:
        self.learner.replica = self.run.model.module
        gc.collect()  # the hooks of the old DDP stay on the parameters as long as it lives

    def _begin_anew(self) -> None:
        self.learner.replica = replica_of(self.run)
        self.learner.begin()
