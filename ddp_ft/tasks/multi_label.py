"""Classification with any number of labels for each image."""

from collections.abc import Mapping, Sequence
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
    """

    name = "multi-label"
    kinds = TASKS[name].kinds
    words = TaskWords(
        names="labels",
        verb="finds labels:",
        hub_type="image-classification",
        pipeline_tag="image-classification",
        tags=("multi-label",),
    )
    losses = ("bce", "focal", "soft_f1")
    primary_metric = TASKS[name].metric
    decided: ClassVar[Mapping[str, type]] = {"classes": list}
    scored_class = ScoredLabels
    shares: NDArray[np.float64] | None = None

    def __init__(self, names: tuple[str, ...], loss: LossChoice | None = None, extra: str | None = None) -> None:
        super().__init__(names, loss, extra)
        self.weights = torch.ones(self.outputs)
        self.positive = torch.ones(self.outputs)

    @classmethod
    def from_data(cls, config: RunConfig, classes: tuple[str, ...], targets: NDArray[Any]) -> "MultiLabel":
        """Return the task for training on targets that are 0 and 1 (N x classes) or class numbers (int64, N).

        UserError for targets without any label and for settings that do not fit.
        """
        positives = np.bincount(targets, minlength=len(classes)) if targets.ndim == 1 else (targets > 0.5).sum(0)
        if not positives.any():
            raise UserError("No training image has any label.", "Are data.target and data.separator right?")
        task = cls.configured(config, classes)
        _check_weights(config.loss, task.choice)
        weights = class_weights(config.loss, classes, positives)
        positive = positive_weights(config.loss, classes, positives, len(targets))
        task.weights = task.weights if weights is None else weights
        task.positive = task.positive if positive is None else positive
        task.shares = (positives + 1) / (len(targets) + 2)
        return task

    def targets(self, batch: Batch) -> Tensor:
        """0 and 1, float32, B x classes; class numbers are spread out."""
        target = batch["target"]
        return F.one_hot(target, self.outputs).float() if target.ndim == 1 else target

    def train_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Smoothing draws each target towards 0.5 by its share, as in timm; soft_f1 has none. B."""
        if self.choice.name not in TERM_LOSSES:
            return self.plain_losses(outputs, target)
        self.weights, self.positive = self.weights.to(outputs.device), self.positive.to(outputs.device)
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        terms = multi_label_terms(self.choice, outputs, smoothed, self.positive)
        return (terms * self.weights).sum(1) / self.weights.sum()

    def plain_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Without smoothing and weights, B."""
        if self.choice.name == "soft_f1":
            return soft_f1(torch.sigmoid(outputs), target, count=1.0)
        return multi_label_terms(self.choice, outputs, target, 1.0).mean(1)

    def other_metrics(self, predictions: Batch, target: Tensor) -> dict[str, float]:
        """Shares from 0 to 1; decisions are made at a probability of 0.5. Classes that the set lacks are left out."""
        from torchmetrics.functional.classification import binary_f1_score

        probabilities, truth = torch.sigmoid(predictions[LOGITS].double()), target > 0.5
        decisions = probabilities >= THRESHOLD
        return {
            "mAP": mean_average_precision(probabilities, truth),
            "micro_f1": float(binary_f1_score(decisions.flatten().int(), truth.flatten().int())),
            "macro_f1": mean_f1(decisions, truth),
            "auroc": mean_auroc(probabilities, truth),
            "exact_match": float((decisions == truth).all(1).double().mean()),
        }

    def directions(self) -> dict[str, bool]:
        """More is better, but for the loss."""
        return directions_of("loss", "mAP", "micro_f1", "macro_f1", "auroc", "exact_match")

    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """Half of the labels, drawn, and each one once at least."""
        drawn = torch.randint(0, 2, (samples, self.outputs), generator=generator)
        return (drawn | F.one_hot(torch.arange(samples) % self.outputs, self.outputs)).float()

    def metric_inputs(self, predictions: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and targets as int64 for torchmetrics."""
        return self.estimates(predictions), (target > 0.5).long()

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
        return {"classes": [name for name, p in by_name.items() if p >= THRESHOLD], "probabilities": by_name}

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """The labels that are there, and twice the least distance of a probability from THRESHOLD."""
        return answer["classes"], 2 * min(abs(p - THRESHOLD) for p in answer["probabilities"].values())

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The labels that are there."""
        there = self.targets({"target": batch["target"][place : place + 1]})[0].tolist()
        return [name for name, value in zip(self.names, there, strict=True) if value > THRESHOLD] or ["none"]

    def initial_bias(self) -> Tensor | None:
        """Logits of the labels' shares of the training samples, with one sample more of either kind (Laplace)."""
        return None if self.shares is None else torch.logit(torch.tensor(self.shares)).float()


def _check_weights(settings: LossConfig, loss: LossChoice) -> None:
    given = [key for key in (CLASS_KEY, POSITIVE_KEY) if getattr(settings, key.partition(".")[2]) is not None]
    if given and loss.name not in TERM_LOSSES:
        hint = f"For multi-label: {' or '.join(TERM_LOSSES)}."
        raise UserError(f"{given[0]} needs a loss with a part for each class; '{loss.name}' has none.", hint)
