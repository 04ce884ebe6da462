"""Classification with one label for each image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import Batch, TaskWords
from ddp_ft.errors import UserError
from ddp_ft.tasks.class_task import LOGITS, ClassTask
from ddp_ft.tasks.class_weights import POSITIVE_KEY, class_weights
from ddp_ft.tasks.losses import single_label_losses
from ddp_ft.tasks.metric_table import directions_of
from ddp_ft.tasks.metrics import mean_auroc
from ddp_ft.tasks.scored.classes import ScoredClasses
from ddp_ft.tasks.scored.probabilities import BINS


class SingleLabel(ClassTask):
    """One of `classes` for each image; batches carry "target" (int64 class numbers, B).

    For training, `counts` are the samples of each class, for the head's initial bias; `weights` (float32, classes) are
    those of the classes.
    """

    name = "single-label"
    kinds = TASKS[name].kinds
    words = TaskWords(
        names="classes",
        verb="predicts one of",
        hub_type="image-classification",
        pipeline_tag="image-classification",
    )
    losses = ("cross_entropy", "focal", "bce", "soft_f1")
    can_rank = True
    primary_metric = TASKS[name].metric
    decided: ClassVar[Mapping[str, type]] = {"class": str, "probability": float}
    scored_class = ScoredClasses
    counts: NDArray[np.int64] | None = None
    weights: Tensor | None = None

    @classmethod
    def from_data(cls, config: RunConfig, classes: tuple[str, ...], targets: NDArray[Any]) -> "SingleLabel":
        """Return the task for training on targets that are int64 (N); UserError for settings that do not fit."""
        if len(classes) < 2:
            hint = f"{cls.name} learns to distinguish two or more."
            raise UserError(f"The data has one class only, {', '.join(classes)}.", hint)
        if config.loss.positive_weights is not None:
            message = f"{POSITIVE_KEY} is for the task multi-label; this one is {cls.name}."
            raise UserError(message, "Use --class-weights.")
        task = cls.configured(config, classes)
        task.counts = np.bincount(targets, minlength=len(classes))
        task.weights = class_weights(config.loss, classes, task.counts)
        return task

    def targets(self, batch: Batch) -> Tensor:
        """Class numbers, int64, B."""
        return batch["target"]

    def class_weight(self, target: Tensor) -> Tensor | float:
        """The weight of each sample's class, B."""
        if self.weights is None:
            return 1.0
        self.weights = self.weights.to(target.device)
        return self.weights[target]

    def train_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """With label smoothing, but for soft_f1, B."""
        return single_label_losses(self.choice, outputs, target, self.label_smoothing)

    def plain_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Without smoothing, B."""
        return single_label_losses(self.choice, outputs, target, 0.0)

    def other_metrics(self, predictions: Batch, target: Tensor) -> dict[str, float]:
        """Shares from 0 to 1. balanced_accuracy and auroc leave out classes that the set lacks."""
        # Imported here: it takes a second, for which the first training step need not wait.
        from torchmetrics.functional.classification import (
            multiclass_accuracy,
            multiclass_calibration_error,
            multiclass_f1_score,
        )

        classes, outputs = self.outputs, predictions[LOGITS]
        probabilities = torch.softmax(outputs.double(), 1)
        truth = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, target.unsqueeze(1), True)
        recalls = multiclass_accuracy(outputs, target, classes, average=None)
        found: dict[str, float | Tensor] = {
            "accuracy": multiclass_accuracy(outputs, target, classes, average="micro"),
            "balanced_accuracy": recalls[truth.any(0)].mean(),
            "macro_f1": multiclass_f1_score(outputs, target, classes, average="macro"),
            "auroc": mean_auroc(probabilities, truth),
            "ece": multiclass_calibration_error(probabilities, target, classes, n_bins=BINS),
        }
        if classes > 5:
            found["top5_accuracy"] = multiclass_accuracy(outputs, target, classes, average="micro", top_k=5)
        return {name: float(value) for name, value in found.items()}

    def directions(self) -> dict[str, bool]:
        """top5_accuracy for more than 5 classes."""
        more = ["top5_accuracy"] if self.outputs > 5 else []
        return directions_of("loss", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece", *more)

    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """All classes in turn."""
        return torch.arange(samples) % self.outputs

    def estimates(self, predictions: Batch) -> Tensor:
        """Softmax over the classes, float32, N x classes."""
        return torch.softmax(predictions[LOGITS], dim=-1)

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """Logarithm of the mean probability."""
        logs = torch.stack([torch.log_softmax(each[LOGITS].double(), dim=-1) for each in predictions])
        return {LOGITS: (torch.logsumexp(logs, dim=0) - math.log(len(predictions))).float()}

    def answer(self, estimate: Sequence[float]) -> dict[str, Any]:
        """The likeliest class (the first, if several are equal), its probability, and those of all classes."""
        best = max(range(len(estimate)), key=estimate.__getitem__)
        by_name = dict(zip(self.names, estimate, strict=True))
        return {"class": self.names[best], "probability": estimate[best], "probabilities": by_name}

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """The class, and how much more probable it is than the next one."""
        first, second = sorted(answer["probabilities"].values(), reverse=True)[:2]
        return answer["class"], first - second

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The class."""
        return [self.names[int(batch["target"][place])]]

    def initial_bias(self) -> Tensor | None:
        """Logarithms of the classes' shares of the training samples, each class counted once more (Laplace)."""
        if self.counts is None:
            return None
        return torch.tensor((self.counts + 1) / (self.counts.sum() + self.outputs)).log().float()
