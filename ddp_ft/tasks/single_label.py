"""Classification with one label for each picture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_ft.contracts import Batch
from ddp_ft.errors import UserError, nearest

LOWER_IS_BETTER = ("loss",)
LOSS_DECIMALS = 5


class SingleLabel:
    """Cross-entropy over `classes`; batches carry "image" and "target" (int64 class numbers)."""

    name = "single-label"

    def __init__(self, classes: tuple[str, ...], label_smoothing: float = 0.0) -> None:
        self.classes = classes
        self.outputs = len(classes)
        self.label_smoothing = label_smoothing

    def inputs(self, batch: Batch) -> Tensor:
        """The pictures, float, B x 3 x H x W."""
        return batch["image"]

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted sum of the smoothed cross-entropies of a micro-batch, and the sum of the weights."""
        losses = F.cross_entropy(
            outputs.float(), batch["target"], reduction="none", label_smoothing=self.label_smoothing
        )
        weight = batch["weight"]
        return (losses * weight).sum(), weight.sum()

    def metrics(self, outputs: Tensor, records: Batch) -> dict[str, float]:
        """Loss (without smoothing), accuracy, balanced accuracy, macro F1, and top-5 for more than 5 classes."""
        # Imported here: it takes a second, which the first training step need not wait for.
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

        target, classes = records["target"], self.outputs
        losses = F.cross_entropy(outputs.double(), target, reduction="none")
        found: dict[str, float | Tensor] = {
            # The last digits follow the number of threads and processes; they are cut, so that the same model
            # has the same loss anywhere.
            "loss": round(float(losses.mean()), LOSS_DECIMALS),
            "accuracy": multiclass_accuracy(outputs, target, classes, average="micro"),
            "balanced_accuracy": multiclass_accuracy(outputs, target, classes, average="macro"),
            "macro_f1": multiclass_f1_score(outputs, target, classes, average="macro"),
        }
        if classes > 5:
            found["top5_accuracy"] = multiclass_accuracy(outputs, target, classes, average="micro", top_k=5)
        return {name: float(value) for name, value in found.items()}

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes, B x classes."""
        return torch.softmax(outputs.float(), dim=-1)

    def higher_is_better(self, metric: str) -> bool:
        """Whether a larger value of that metric is better; UserError if there is no such metric."""
        known = ["loss", "accuracy", "balanced_accuracy", "macro_f1"]
        known += ["top5_accuracy"] if self.outputs > 5 else []
        if metric not in known:
            hint = nearest(metric, known) or f"Known: {', '.join(known)}."
            raise UserError(f"eval.metric = '{metric}' is no metric of the task {self.name}.", hint)
        return metric not in LOWER_IS_BETTER
