"""What the tasks have in common: summed losses of single samples, and the names of metrics."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Batch, Task
from ddp_ft.errors import UserError, known_names
from ddp_ft.plugins import is_reference
from ddp_ft.tasks.losses import LossChoice, weighted_sum
from ddp_ft.tasks.scored.base import Floats, ScoredSet
from ddp_ft.tasks.user_code import UserLoss, UserMetric

LOSS_DECIMALS = 5
# What of `settings` names code of the user's own.
CODE_SETTINGS = ("loss", "extra")
SEPARATOR = ";"
# Samples on which code of the user's own is tried at the start.
TRIAL_SAMPLES = 64


class SupervisedTask(Task):
    """A task whose batches carry "target" and "weight"; evaluation counts all samples alike.

    `names` are those of the outputs. `extra` is a metric of the user's own, as FILE.py:CLASS.
    """

    # The losses that fit it; the first is what `auto` stands for.
    losses: tuple[str, ...]
    ranks = False
    # How numbers stand in a table of texts.
    digits = ".6f"

    def __init__(self, names: tuple[str, ...], loss: LossChoice, extra: str | None) -> None:
        self.names = names
        self.outputs = len(names)
        self.choice = loss
        self.user_loss = UserLoss(loss.name) if is_reference(loss.name) else None
        self.user_metric = UserMetric(extra, self.outputs) if extra else None

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and summed weight of a micro-batch: float32 scalars, the first with a gradient."""
        target = self.targets(batch)
        weight = batch["weight"] * self.class_weight(target)
        return weighted_sum(self.train_losses, outputs.float(), target, weight, batch)

    def records(self, batch: Batch) -> Batch:
        """Targets and weights."""
        return {name: batch[name] for name in ("target", "weight")}

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """All metrics over a whole set; its loss is without smoothing and weights."""
        outputs, target = self.as_outputs(predictions), self.targets(records)
        if self.user_loss:
            losses = self.user_loss(outputs.float(), target)
        else:
            losses = self.plain_losses(outputs.double(), target)
        # The last digits follow the number of threads and processes; they are cut, so that the same model
        # has the same loss anywhere.
        found = {"loss": round(float(losses.double().mean()), LOSS_DECIMALS), **self.other_metrics(predictions, target)}
        if self.user_metric:
            found[self.user_metric.name] = self.user_metric.compute(*self.judged(predictions, target))
        assert found.keys() == {*self.directions(), *([self.user_metric.name] if self.user_metric else [])}
        return found

    def higher_is_better(self, metric: str) -> bool:
        """Whether a larger value of that metric is better; UserError if there is no such metric."""
        if self.user_metric and metric == self.user_metric.name:
            return self.user_metric.higher_is_better()
        known = self.directions()
        if metric not in known:
            names = [*known, *([self.user_metric.name] if self.user_metric else [])]
            raise UserError(
                f"eval.metric = '{metric}' is no metric of the task {self.name}.", known_names(metric, names)
            )
        return known[metric]

    def check(self) -> None:
        """Try the user's own loss and metric on a few samples; UserError if they do not do what they are to."""
        generator = torch.Generator().manual_seed(0)
        samples = min(TRIAL_SAMPLES, 2 * self.outputs + 2)
        outputs = torch.randn(samples, self.outputs, generator=generator)
        target = self.trial_targets(samples, generator)
        if self.user_metric:
            self.user_metric.check(list(self.directions()), *self.judged(self.predictions(outputs, {}), target))
        if self.user_loss:
            self.user_loss.check(outputs, target)

    def settings(self) -> dict[str, Any]:
        """The names, the loss and the user's metric; a task adds what else it needs."""
        extra = self.user_metric.reference if self.user_metric else None
        return {"classes": list(self.names), "loss": self.choice.to_mapping(), "extra": extra}

    def score(self, predictions: Batch, records: Batch) -> ScoredSet:
        """As in the contract of a task; what is no number in the predictions counts as 0, or as the largest."""
        try:
            estimates = self.estimates(predictions)
        except KeyError:
            raise UserError(f"not of the task {self.name}.") from None
        if not len(estimates) or estimates.shape[1:] != (len(self.names),):
            raise UserError(f"not of {len(self.names)} outputs.")
        return self.scored(np.nan_to_num(estimates.double().numpy()), records["target"].numpy())

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """As in the contract of a task."""
        return [self.answer(row) for row in self.estimates(predictions).tolist()]

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """Nothing is decided."""
        return None, 1.0

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """Labels are joined, and numbers have the digits that mean something."""
        return [self._text(cell) for cell in self.cells(answer)]

    def _text(self, cell: Any) -> str:
        if isinstance(cell, list):
            return SEPARATOR.join(cell)
        return cell if isinstance(cell, str) else format(cell, self.digits)

    @classmethod
    def unfitted(cls, names: tuple[str, ...]) -> "SupervisedTask":
        """As it is before there is a model, as far as predictions need it."""
        return cls.from_settings({"classes": names})

    def judged(self, predictions: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """What the user's metric is given: estimates and targets."""
        return self.estimates(predictions), target

    def class_weight(self, target: Tensor) -> Tensor | float:
        """What each sample counts by its class (B)."""
        return 1.0

    @classmethod
    @abstractmethod
    def from_data(cls, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any]) -> "SupervisedTask":
        """For training on samples with these targets; UserError for settings and targets that do not fit."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "SupervisedTask":
        """For evaluation and prediction, from what `settings` gave."""

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """Targets as the losses take them."""

    @abstractmethod
    def train_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What training minimises, for each sample (B)."""

    @abstractmethod
    def plain_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The same without smoothing and weights."""

    @abstractmethod
    def other_metrics(self, predictions: Batch, target: Tensor) -> dict[str, float]:
        """The metrics besides the loss."""

    @abstractmethod
    def directions(self) -> dict[str, bool]:
        """The names of all metrics, the user's apart, and whether more is better."""

    @abstractmethod
    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """Targets as `targets` gives them, with every class among them where there is room."""

    @abstractmethod
    def as_outputs(self, predictions: Batch) -> Tensor:
        """The outputs that they were made of, as the losses take them."""

    @abstractmethod
    def estimates(self, predictions: Batch) -> Tensor:
        """What is told of each sample, N x outputs: probabilities, or numbers in the target's units."""

    @abstractmethod
    def scored(self, scores: Floats, target: NDArray[Any]) -> ScoredSet:
        """The scored set of estimates (N x outputs) and the targets beside them."""

    @abstractmethod
    def answer(self, estimate: Sequence[float]) -> dict[str, Any]:
        """One of the `answers`, from one row of the estimates."""


def stored_loss(settings: Mapping[str, Any], losses: Sequence[str]) -> LossChoice:
    """The loss that `settings` holds; the first of the task's in those of models from before there was a choice."""
    return LossChoice.from_mapping(settings["loss"]) if "loss" in settings else LossChoice(losses[0])
