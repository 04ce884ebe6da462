"""Classification with any number of labels for each image."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import LossConfig, RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import Batch, TaskWords
from ddp_ft.errors import UserError
from ddp_ft.tasks.class_task import LOGITS, ClassTask
from ddp_ft.tasks.class_weights import CLASS_KEY, POSITIVE_KEY, class_weights, positive_weights
from ddp_ft.tasks.losses import LossChoice, multi_label_terms, soft_f1
from ddp_ft.tasks.metric_table import directions_of
from ddp_ft.tasks.metrics import mean_auroc, mean_average_precision, mean_f1
from ddp_ft.tasks.scored.labels import ScoredLabels
from ddp_ft.tasks.scored.probabilities import THRESHOLD

TERM_LOSSES = ("bce", "focal")


class MultiLabel(ClassTask):
    """Each of `classes` there or not; batches carry "target" (float32 of 0 and 1, B x classes; or int64, B).

    The loss of an image is the mean over the classes, weighted by `weights`; `positive` is the weight of a label that
    is there (float32, classes each). `shares` of the training images have each label, for the head's initial bias.

    A target of NaN is unknown (data.unknown = mask). The mean is then over the known labels, and an image counts by
    the share of its labels that are known: so the loss of a batch is the mean over all its known labels, however it is
    divided. Metrics are over the known labels too. `has_unknown`: some of the training set are unknown.
    """

    name = "multi-label"
    kinds = TASKS[name].kinds
    words = TaskWords(
        names="labels",
        verb="predicts any of the labels",
        hub_type="image-classification",
        pipeline_tag="image-classification",
        tags=("multi-label",),
    )
    losses = ("bce", "focal", "soft_f1")
    primary_metric = TASKS[name].metric
    decided: ClassVar[Mapping[str, type]] = {"classes": list}
    scored_class = ScoredLabels
    shares: NDArray[np.float64] | None = None
    has_unknown = False
    thresholds: tuple[float, ...] = ()  # one for each name; none: THRESHOLD

    def __init__(self, names: tuple[str, ...], loss: LossChoice | None = None, extra: str | None = None) -> None:
        super().__init__(names, loss, extra)
        self.weights = torch.ones(self.outputs)
        self.positive = torch.ones(self.outputs)

    @classmethod
    def from_data(cls, config: RunConfig, classes: tuple[str, ...], targets: NDArray[Any]) -> "MultiLabel":
        """Return the task for training on targets that are 0, 1 and NaN (N x classes) or class numbers (int64, N).

        UserError for targets without any label and for settings that do not fit.
        """
        positives = np.bincount(targets, minlength=len(classes)) if targets.ndim == 1 else (targets > 0.5).sum(0)
        if not positives.any():
            raise UserError("No training image has any label.", "Are data.target and data.separator right?")
        task = cls.configured(config, classes)
        _check_weights(config.loss, task.choice)
        weights = class_weights(config.loss, classes, positives)
        known = np.full(len(classes), len(targets)) if targets.ndim == 1 else (~np.isnan(targets)).sum(0)
        positive = positive_weights(config.loss, classes, positives, known)
        task.weights = task.weights if weights is None else weights
        task.positive = task.positive if positive is None else positive
        task.shares = (positives + 1) / (known + 2)
        task.has_unknown = bool((known < len(targets)).any())
        return task

    def targets(self, batch: Batch) -> Tensor:
        """0, 1 and NaN, float32, B x classes; class numbers are spread out."""
        target = batch["target"]
        return F.one_hot(target, self.outputs).float() if target.ndim == 1 else target

    def train_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Smoothing draws each target towards 0.5 by its share, as in timm; soft_f1 has none. B."""
        if self.choice.name not in TERM_LOSSES:
            return self.plain_losses(outputs, target)
        self.weights, self.positive = self.weights.to(outputs.device), self.positive.to(outputs.device)
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        if not self.has_unknown:
            terms = multi_label_terms(self.choice, outputs, smoothed, self.positive)
            return (terms * self.weights).sum(1) / self.weights.sum()
        terms = multi_label_terms(self.choice, outputs, torch.nan_to_num(smoothed), self.positive)
        return _mean_over(terms, ~torch.isnan(target) * self.weights)

    def class_weight(self, target: Tensor) -> Tensor | float:
        """The share of a sample's labels that are known, by their weights, B."""
        if not self.has_unknown:
            return 1.0
        self.weights = self.weights.to(target.device)
        return (~torch.isnan(target) * self.weights).sum(1) / self.weights.sum()

    def mean_loss(self, losses: Tensor, target: Tensor) -> Tensor:
        """Over all known labels."""
        known = _known(target)
        return losses.mean() if known is None else _mean_over(losses, known.double().mean(1), 0)

    def plain_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Without smoothing and weights, B."""
        known = ~torch.isnan(target) if self.has_unknown else _known(target)
        there = target if known is None else torch.nan_to_num(target)
        if self.choice.name == "soft_f1":
            probabilities = torch.sigmoid(outputs)
            return soft_f1(probabilities if known is None else probabilities * known, there, count=1.0)
        terms = multi_label_terms(self.choice, outputs, there, 1.0)
        return terms.mean(1) if known is None else _mean_over(terms, known.to(terms.dtype))

    def other_metrics(self, predictions: Batch, target: Tensor) -> dict[str, float]:
        """Shares from 0 to 1 over the known labels; a label is there from its threshold on. Classes that the set
        lacks are left out, and for exact_match images of which nothing is known."""
        from torchmetrics.functional.classification import binary_f1_score

        probabilities, truth, known = torch.sigmoid(predictions[LOGITS].double()), target > 0.5, ~torch.isnan(target)
        decisions = probabilities >= torch.tensor(self._least(), dtype=torch.float64)
        return {
            "mAP": mean_average_precision(probabilities, truth, known),
            "micro_f1": float(binary_f1_score(decisions[known].int(), truth[known].int())) if known.any() else 0.0,
            "macro_f1": mean_f1(decisions, truth, known),
            "auroc": mean_auroc(probabilities, truth, known),
            "exact_match": float(_mean_over(((decisions == truth) | ~known).all(1).double(), known.any(1).double(), 0)),
        }

    def directions(self) -> dict[str, bool]:
        """More is better, but for the loss."""
        return directions_of("loss", "mAP", "micro_f1", "macro_f1", "auroc", "exact_match")

    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """Half of the labels, drawn, and each one once at least; one is NaN if the training set has unknown ones."""
        drawn = torch.randint(0, 2, (samples, self.outputs), generator=generator)
        found = (drawn | F.one_hot(torch.arange(samples) % self.outputs, self.outputs)).float()
        if self.has_unknown:
            found[-1, 0] = torch.nan
        return found

    def metric_inputs(self, predictions: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and targets as int64 for torchmetrics; -1 where they are unknown (its ignore_index)."""
        return self.estimates(predictions), torch.where(torch.isnan(target), -1, (target > 0.5).long())

    def estimates(self, predictions: Batch) -> Tensor:
        """Sigmoid of each class, float32, N x classes."""
        return torch.sigmoid(predictions[LOGITS])

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """Logits of the mean probability."""
        logits = torch.stack([each[LOGITS].double() for each in predictions])
        present, absent = (torch.logsumexp(F.logsigmoid(sign * logits), dim=0) for sign in (1, -1))
        return {LOGITS: (present - absent).float()}

    def answer(self, estimate: Sequence[float]) -> dict[str, Any]:
        """The labels that are there, and the probabilities of all."""
        by_name = dict(zip(self.names, estimate, strict=True))
        there = [name for name, p, least in zip(self.names, estimate, self._least(), strict=True) if p >= least]
        return {"classes": there, "probabilities": by_name}

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """The labels that are there, and twice the least distance of a probability from its threshold."""
        pairs = zip(answer["probabilities"].values(), self._least(), strict=True)
        return answer["classes"], 2 * min(abs(p - least) for p, least in pairs)

    def deciding_at(self, thresholds: Sequence[float]) -> "MultiLabel":
        """A copy with these thresholds."""
        other = copy(self)
        other.thresholds = tuple(thresholds)
        return other

    def _least(self) -> tuple[float, ...]:
        return self.thresholds or (THRESHOLD,) * len(self.names)

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The labels that are there."""
        there = self.targets({"target": batch["target"][place : place + 1]})[0].tolist()
        return [name for name, value in zip(self.names, there, strict=True) if value > THRESHOLD] or ["none"]

    def initial_bias(self) -> Tensor | None:
        """Logits of the labels' shares of the training samples, with one sample more of either kind (Laplace)."""
        return None if self.shares is None else torch.logit(torch.tensor(self.shares)).float()


def _known(target: Tensor) -> Tensor | None:
    """Which labels are known; None if all are. Waits for the device."""
    known = ~torch.isnan(target)
    return None if bool(known.all()) else known


def _mean_over(values: Tensor, weights: Tensor, dim: int = 1) -> Tensor:
    """The weighted mean; 0 where all weights are 0."""
    total = weights.sum(dim)
    return (values * weights).sum(dim) / torch.where(total > 0, total, torch.ones_like(total))


def _check_weights(settings: LossConfig, loss: LossChoice) -> None:
    given = [key for key in (CLASS_KEY, POSITIVE_KEY) if getattr(settings, key.partition(".")[2]) is not None]
    if given and loss.name not in TERM_LOSSES:
        hint = f"For multi-label: {' or '.join(TERM_LOSSES)}."
        raise UserError(f"{given[0]} needs a loss with a part for each class; '{loss.name}' has none.", hint)
