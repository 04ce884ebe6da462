"""Training a head on stored features of the backbone: every rank trains the same, and so none waits for another."""

from collections.abc import Generator

import torch

from ddp_ft.contracts import PROBE, Batch, Evaluation, Say
from ddp_ft.distributed.agreement import Decision
from ddp_ft.distributed.world import World
from ddp_ft.features.dataset import FeatureSet, evaluate_head, is_small, train_batches
from ddp_ft.models.backbone import head_module
from ddp_ft.training.batches import head_order
from ddp_ft.training.learners import head_learner
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.schedule import lr_factor
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import StepSums

# A step on features takes about a millisecond, and an agreement a good part of one.
STEPS_BETWEEN_AGREEMENTS = 20


class FeaturePhase(Phase):
    """The probe of a head, or the whole recipe where only the head learns; on features of `train` and `val`."""

    def __init__(self, run: Run, state: TrainState, train: FeatureSet, val: FeatureSet) -> None:
        solo = World(0, 1, 0, run.world.device)
        name, learner = state.progress.phase, head_learner(run, state, solo)
        super().__init__(run, name, learner, head_order(run, solo, name), noise=0)
        self.head = head_module(run.model.module, run.model.head_path or "")
        self.train, self.val = train, val

    @property
    def total_steps(self) -> int:
        """How many steps the phase has."""
        if self.name != PROBE:
            return super().total_steps
        return self.run.config.probe.epochs * self.sampler.steps_per_epoch

    def rate(self, step: int, total_steps: int) -> float:
        """The probe's rate falls along a cosine; else it is the recipe's."""
        if self.name != PROBE:
            return super().rate(step, total_steps)
        return self.run.config.probe.lr * lr_factor(step, total_steps, "cosine")

    def batches(self, state: TrainState) -> Generator[list[Batch], None, None]:
        """The whole batch of each step from the present one on."""
        in_one_thread = is_small(self.head, self.sampler.batch_size)
        return train_batches(self.train, self.sampler, state.progress.step, self.total_steps, in_one_thread)

    def prepare(self, state: TrainState, say: Say) -> None:
        """Nothing: the head learns from the first step to the last."""

    def renew(self) -> None:
        """Nothing: a rank that runs out of memory ends the run."""

    def measure(self) -> Evaluation:
        """Evaluate the head on the features of the validation set; outputs are for rank 0 alone, metrics for all."""
        found: list[Evaluation] = []

        def compute() -> dict[str, float]:
            found.append(evaluate_head(self.head, self.val, self.run.task, self.run.plan.precision))
            return found[0].metrics

        metrics = self.run.world.from_main(compute)
        return found[0] if found else Evaluation(metrics)

    def decide(self, state: TrainState, sums: StepSums, flags: list[float], flush: bool) -> list[Decision]:
        """No step sums anything over ranks, and each is quick, so the flags are summed now and then; the rest is the
        same on all ranks anyway."""
        step, agreement = state.progress.step, self.run.agreement
        numbers = sums.numbers()[: -len(flags)].tolist()
        if step % STEPS_BETWEEN_AGREEMENTS and step < self.last_step(state.progress):
            return agreement.read(step, numbers, [0.0] * len(flags))
        return agreement.read(step, numbers, self.run.world.sum(torch.tensor(flags)).tolist())
