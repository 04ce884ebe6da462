"""What all tasks that learn from targets share: sums of single samples' losses, metrics, and code of the user's own."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.config.synonyms import value_answer
from ddp_ft.contracts import SAMPLE, Batch, Task
from ddp_ft.errors import UserError, known_names
from ddp_ft.plugins import is_reference
from ddp_ft.tasks.losses import LossChoice, choose_loss, weighted_sum
from ddp_ft.tasks.scored.base import Floats, ScoredSet
from ddp_ft.tasks.user_code import UserLoss, UserMetric

if TYPE_CHECKING:
    from typing_extensions import Self

LOSS_DECIMALS = 5
# The keys of `settings` that may name code of the user's own.
CODE_SETTINGS = ("loss", "extra")
SEPARATOR = ";"
# Samples on which code of the user's own is tried at the start.
TRIAL_SAMPLES = 64


class SupervisedTask(Task):
    """A task whose batches carry "target" and "weight"; evaluation counts all samples alike.

    `names` are those of the outputs. `loss` None is the first of `losses`. `extra` is a metric of the user's own, as
    FILE.py:CLASS.
    """

    # The losses that fit the task; `auto` is the first.
    losses: tuple[str, ...]
    can_rank = False
    unit = SAMPLE
    # Format of numbers in a table of texts.
    digits = ".6f"

    def __init__(self, names: tuple[str, ...], loss: LossChoice | None = None, extra: str | None = None) -> None:
        self.names = names
        self.outputs = len(names)
        self.choice = loss or LossChoice(self.losses[0])
        self.user_loss = UserLoss(self.choice.name) if is_reference(self.choice.name) else None
        self.user_metric = UserMetric(extra, self.outputs) if extra else None
        self.user_names = [self.user_metric.name] if self.user_metric else []

    @classmethod
    def configured(cls, config: RunConfig, names: tuple[str, ...]) -> "Self":
        """Return the task with the configured loss and metric. UserError for a loss that does not fit."""
        return cls(names, choose_loss(config.loss, cls.name, cls.losses), config.eval.extra)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Self":
        """Return the task for evaluation and prediction, from its `settings`; older models store no loss."""
        loss = LossChoice.from_mapping(settings["loss"]) if "loss" in settings else None
        return cls(tuple(settings["classes"]), loss, settings.get("extra"))

    @classmethod
    def unfitted(cls, names: tuple[str, ...]) -> "Self":
        """Return the task as it is before there is a model, as far as predictions need it."""
        return cls(names)

    def settings(self) -> dict[str, Any]:
        """The names, the loss and the user's metric; a task adds what else it needs."""
        extra = self.user_metric.reference if self.user_metric else None
        return {"classes": list(self.names), "loss": self.choice.to_mapping(), "extra": extra}

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and summed weight of a micro-batch: float32 scalars, the first with a gradient."""
        target = self.targets(batch)
        weight = batch["weight"] * self.class_weight(target)
        return weighted_sum(self.user_loss or self.train_losses, outputs.float(), target, weight, batch)

    def records(self, batch: Batch) -> Batch:
        """Targets and weights."""
        return {name: batch[name] for name in ("target", "weight")}

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """All metrics over a whole set; its loss is without smoothing and weights."""
        outputs, target = self.as_outputs(predictions), self.targets(records)
        losses = (
            self.user_loss(outputs.float(), target) if self.user_loss else self.plain_losses(outputs.double(), target)
        )
        # The last digits follow the number of threads and processes; they are cut, so that the same model
        # has the same loss anywhere.
        found = {
            "loss": round(float(self.mean_loss(losses.double(), target)), LOSS_DECIMALS),
            **self.other_metrics(predictions, target),
        }
        if self.user_metric:
            found[self.user_metric.name] = self.user_metric.compute(*self.metric_inputs(predictions, target))
        assert found.keys() == {*self.directions(), *self.user_names}
        return found

    def higher_is_better(self, metric: str) -> bool:
        """Whether a larger value of that metric is better; UserError if there is no such metric."""
        if self.user_metric and metric == self.user_metric.name:
            return self.user_metric.higher_is_better()
        known = self.directions()
        if metric not in known:
            hint = value_answer("eval.metric", metric) or known_names(metric, [*known, *self.user_names])
            raise UserError(f"eval.metric = '{metric}' is no metric of the task {self.name}.", hint)
        return known[metric]

    def check(self) -> None:
        """As `trials`."""
        self.trials()

    def trials(self) -> list[str]:
        """Try the user's own loss and metric on a few samples, and return a line on each. UserError if one breaks its
        contract."""
        generator = torch.Generator().manual_seed(0)
        samples = min(TRIAL_SAMPLES, 2 * self.outputs + 2)
        outputs = torch.randn(samples, self.outputs, generator=generator)
        target = self.trial_targets(samples, generator)
        lines = []
        if self.user_metric:
            inputs = self.metric_inputs(self.predictions(outputs, {}), target)
            lines.append(self.user_metric.check(self.directions(), *inputs))
        if self.user_loss:
            lines.append(self.user_loss.check(outputs, target))
        return lines

    def scored_set(self, predictions: Batch, records: Batch) -> ScoredSet:
        """As in `Task`; a NaN among the predictions counts as 0, an infinite value as the largest or smallest one."""
        try:
            estimates = self.estimates(predictions)
        except KeyError:
            raise UserError(f"not of the task {self.name}.") from None
        if not len(estimates) or estimates.shape[1:] != (len(self.names),):
            raise UserError(f"not of {len(self.names)} outputs.")
        return self.make_scored_set(np.nan_to_num(estimates.double().numpy()), records["target"].numpy())

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """As in `Task`."""
        return [self.answer(row) for row in self.estimates(predictions).tolist()]

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """Nothing is decided."""
        return None, 1.0

    def deciding_at(self, thresholds: Sequence[float]) -> Task:
        """UserError: nothing is decided by a threshold."""
        why = "which has one class for each image, the likeliest" if self.can_rank else "which decides nothing"
        hint = "A threshold is for models that find any number of labels in an image."
        raise UserError(f"--threshold: the model is for {self.name}, {why}.", hint)

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """The values of the answer in its order, those of a mapping one by one."""
        return [cell for each in answer.values() for cell in (each.values() if isinstance(each, dict) else [each])]

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """The cells as texts: labels joined, numbers with six decimals."""
        return [self._text(cell) for cell in self.cells(answer)]

    def _text(self, cell: Any) -> str:
        if isinstance(cell, list):
            return SEPARATOR.join(cell)
        return cell if isinstance(cell, str) else format(cell, self.digits)

    def metric_inputs(self, predictions: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """The arguments of the user's metric: estimates and targets."""
        return self.estimates(predictions), target

    def class_weight(self, target: Tensor) -> Tensor | float:
        """The weight of each sample by its class (B)."""
        return 1.0

    def mean_loss(self, losses: Tensor, target: Tensor) -> Tensor:
        """The loss of a set from those of its samples (N)."""
        return losses.mean()

    @classmethod
    @abstractmethod
    def from_data(cls, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any]) -> "Self":
        """Return the task for training on samples with these targets; UserError for settings and targets that do not
        fit."""

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
        """The names of all metrics but the user's, and whether more is better."""

    @abstractmethod
    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """Targets as `targets` returns them, with every class among them if there are enough samples."""

    @abstractmethod
    def as_outputs(self, predictions: Batch) -> Tensor:
        """The outputs that the predictions were made of, as the losses take them."""

    @abstractmethod
    def estimates(self, predictions: Batch) -> Tensor:
        """What is written of each sample, N x outputs: probabilities, or numbers in the target's units."""

    @abstractmethod
    def make_scored_set(self, estimates: Floats, target: NDArray[Any]) -> ScoredSet:
        """The scored set of estimates (N x outputs) and their targets."""

    @abstractmethod
    def answer(self, estimate: Sequence[float]) -> dict[str, Any]:
        """One of the `answers`, from one row of the estimates."""
