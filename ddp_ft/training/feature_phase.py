"""Training a head on stored features of the backbone: every rank trains the same, and so none waits for another."""

from collections.abc import Generator

import torch

from ddp_ft.contracts import PROBE, Batch, Evaluation, Log
from ddp_ft.distributed.agreement import Decision
from ddp_ft.features.dataset import FeatureSet, evaluate_head, is_small, train_batches
from ddp_ft.features.extractor import Extractor
from ddp_ft.features.precompute import FOLDER, FeatureFiles, check_size, open_features, training_views
from ddp_ft.training.batches import head_order, training_source
from ddp_ft.training.learners import head_learner
from ddp_ft.training.phase import Phase
from ddp_ft.training.run import Run
from ddp_ft.training.schedule import Schedule
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import StepSums

# A step on features takes about a millisecond, and an agreement a good part of one.
STEPS_BETWEEN_AGREEMENTS = 20


class FeaturePhase(Phase):
    """The probe, or the training if only the head learns; on features of both sets, computed first.
    Collective. Raises StopAgreed, and UserError if the features are more than is allowed."""

    def __init__(self, run: Run, state: TrainState, log: Log) -> None:
        self.train, self.val = feature_sets(run, log)
        name, learner = state.progress.phase, head_learner(run, state)
        super().__init__(run, name, learner, head_order(run, learner.world, name), noise=0)
        self.head = learner.replica.get_submodule("module")

    @property
    def total_steps(self) -> int:
        """How many steps the phase has."""
        if self.name != PROBE:
            return super().total_steps
        return self.run.config.probe.epochs * self.sampler.steps_per_epoch

    def rate(self, step: int, total_steps: int) -> float:
        """The probe's rate falls along a cosine; else it is the training's."""
        if self.name != PROBE:
            return super().rate(step, total_steps)
        return self.run.config.probe.lr * Schedule("cosine", total_steps).factor(step)

    def batches(self, state: TrainState) -> Generator[list[Batch], None, None]:
        """The whole batch of each step from the present one on."""
        in_one_thread = is_small(self.head, self.sampler.batch_size)
        return train_batches(self.train, self.sampler, state.progress.step, self.total_steps, in_one_thread)

    def prepare(self, state: TrainState, log: Log) -> None:
        """Do nothing: the head learns from the first step to the last."""

    def renew(self) -> None:
        """Do nothing: a rank that runs out of memory ends the run."""

    def measure(self) -> Evaluation:
        """Evaluate the head on the features of the validation set; outputs are for rank 0 alone, metrics for all."""
        found: list[Evaluation] = []

        def compute() -> dict[str, float]:
            found.append(evaluate_head(self.head, self.val, self.run.task, self.run.plan.precision))
            return found[0].metrics

        metrics = self.run.world.from_main(compute)
        return found[0] if found else Evaluation(metrics)

    def decide(self, state: TrainState, sums: StepSums, flags: list[float], flush: bool) -> list[Decision]:
        """Sum the flags every STEPS_BETWEEN_AGREEMENTS steps only, since no step needs a sum over ranks; the rest is
        the same on all ranks."""
        step, agreement = state.progress.step, self.run.agreement
        numbers = sums.numbers()[: -len(flags)].tolist()
        if step % STEPS_BETWEEN_AGREEMENTS and step < self.last_step(state.progress):
            return agreement.read(step, numbers, [0.0] * len(flags))
        return agreement.read(step, numbers, self.run.world.sum(torch.tensor(flags)).tolist())


def feature_sets(run: Run, log: Log) -> tuple[FeatureSet, FeatureSet]:
    """The features of the training set, in all its views, and of the validation set."""
    config, model, plan, train, val = run.config, run.model, run.plan, training_source(run), run.splits.val
    cache = config.freeze
    check_size(model, cache.views * len(train) + len(val), cache.cache_gb)
    root = (cache.cache_dir or run.folder.path / FOLDER) if cache.cache_gb else None
    files = FeatureFiles(root, cache.cache_dir is None, model, plan.to_mapping(), run.splits.fingerprint)
    extractor = Extractor(
        model.module, model.head_path or "", model.call, run.prepare, run.world, plan.precision,
        plan.threads, plan.workers, run.agreement.in_rounds,
    )  # fmt: skip
    views = training_views(train, model.processor, config)
    return open_features(extractor, files, views, (val, model.processor.eval_transform(), {}), log)
