"""A phase: a part of training whose steps are all made in the same way."""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator

from ddp_ft.contracts import TRAIN, Batch, Evaluation, Log
from ddp_ft.data.rng import derive_seed, seed_masks
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.agreement import Decision
from ddp_ft.training.course import EVALUATIONS
from ddp_ft.training.optim import set_rates
from ddp_ft.training.plan import rate_at
from ddp_ft.training.progress import Progress
from ddp_ft.training.run import Run
from ddp_ft.training.schedule import Cadence, Plateau, row_every
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import Learner, StepSums


class Phase(ABC):
    """How the steps of a phase are made, and how their result is measured. `noise`: the last part of
    the seed of random masks (the rank; 0 if all ranks compute the same)."""

    # Whether batches are of the data itself, and not of features.
    is_on_data = False

    def __init__(self, run: Run, name: str, learner: Learner, sampler: GlobalOrderSampler, noise: int) -> None:
        self.run = run
        self.name = name
        self.learner = learner
        self.sampler = sampler
        self.noise = noise

    @abstractmethod
    def batches(self, state: TrainState) -> Generator[list[Batch], None, None]:
        """Yield this rank's micro-batches of each step from the present one on."""

    @abstractmethod
    def measure(self) -> Evaluation:
        """Evaluate the present weights on the validation set. Collective; may raise StopAgreed."""

    @abstractmethod
    def decide(self, state: TrainState, sums: StepSums, flags: list[float], flush: bool) -> list[Decision]:
        """Return the decisions of all ranks that became known after a step with these sums and this rank's flags: on
        CUDA they lag one step unless `flush`."""

    @abstractmethod
    def prepare(self, state: TrainState, log: Log) -> None:
        """Do what is due before the next step."""

    @abstractmethod
    def renew(self) -> None:
        """Make steps possible again after one that some rank could not finish."""

    @property
    def total_steps(self) -> int:
        """The number of steps of the phase, if no budget of time ends it earlier."""
        return self.run.plan.total_steps

    def rate(self, step: int, total_steps: int) -> float:
        """Return the base learning rate of a step, counted from 0, of `total_steps`."""
        return rate_at(self.run.config, self.run.plan, step, total_steps)

    def last_step(self, progress: Progress) -> int:
        """Return the number of the phase's last step."""
        is_bounded = self.name == TRAIN and progress.budget is not None
        return (progress.budget or 0) if is_bounded else self.total_steps

    def epoch(self, step: int) -> float:
        """Return the epochs of the phase after so many steps: 1.5 in the middle of the second."""
        return step / self.sampler.steps_per_epoch

    def cadence(self, progress: Progress) -> Cadence:
        """Return when rows, evaluations and checkpoints are due. The probe is evaluated after its last step only."""
        config, epoch = self.run.config, self.sampler.steps_per_epoch if self.name == TRAIN else 0
        evaluations, checkpoints = self._between_evaluations(progress), config.checkpoint.every_steps
        rows = config.log.every_steps or row_every(self.total_steps)
        # Where epochs are short, as those of a small set are, a checkpoint of each would take longer than its steps.
        regular = epoch if config.eval.every_epochs else evaluations
        return Cadence(self.last_step(progress), rows, evaluations, checkpoints, regular)

    def _between_evaluations(self, progress: Progress) -> int:
        """Return the steps from one evaluation to the next (0: only the last is followed by one); fewer if a budget of
        time shortens a run whose length nobody gave, so that there are as many."""
        if self.name != TRAIN:
            return 0
        usual, budget = self.run.plan.evaluation_epochs * self.sampler.steps_per_epoch, progress.budget
        if budget is None or not self.run.plan.why_epochs or self.run.config.eval.every_epochs:
            return usual
        return min(usual, math.ceil(budget / EVALUATIONS))

    def step(self, state: TrainState, micro_batches: list[Batch], flags: list[float]) -> StepSums:
        """Take an optimizer step over the global batch and count it; `flags` are summed over ranks with it."""
        step, progress = state.progress.step, state.progress
        falls = Plateau(**progress.plateau)
        set_rates(state.optimizer, self.rate(step, self.last_step(progress)) * falls.factor)
        seed_masks(derive_seed(self.run.config.seed, step, self.noise), self.run.world.device)
        sums = self.learner.step(micro_batches, flags)
        state.advance(sums)
        return sums
