"""Toy task: a mark for each number of a row. Its predictions are of uneven length."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import Batch, TaskWords
from ddp_ft.errors import UserError
from ddp_ft.tasks.scored.base import ScoredSet

DIRECTIONS = {"loss": False, "accuracy": True}


class MarksTask:
    name = "mark-rows"
    kinds: tuple[str, ...] = ("marks",)
    words = TaskWords("marks", "marks", "row-marking")
    primary_metric = "accuracy"
    can_rank = False
    unit = "sample"

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.outputs = 1  # for both names

    @classmethod
    def from_data(cls, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any]) -> "MarksTask":
        return cls(names)

    @classmethod
    def unfitted(cls, names: tuple[str, ...]) -> "MarksTask":
        return cls(names)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "MarksTask":
        return cls(tuple(settings["classes"]))

    def deciding_at(self, thresholds: Sequence[float]) -> "MarksTask":
        raise UserError("It has no thresholds.")

    def check(self) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"classes": list(self.names)}

    def initial_bias(self) -> Tensor | None:
        return None

    def higher_is_better(self, metric: str) -> bool:
        if metric not in DIRECTIONS:
            raise UserError(f"{metric} is no metric of the task {self.name}.")
        return DIRECTIONS[metric]

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = self._losses(outputs, batch)
        return (losses * batch["weight"]).sum(), batch["weight"].sum()

    def _losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over the numbers of a row, B."""
        each = F.binary_cross_entropy_with_logits(outputs[:, :, 0].float(), batch["marks"].float(), reduction="none")
        inside = torch.arange(each.shape[1], device=each.device) < batch["marks_length"].unsqueeze(1)
        return (each * inside).sum(1) / batch["marks_length"]

    def predictions(self, outputs: Tensor, batch: Batch) -> Batch:
        rises = torch.sigmoid(outputs[:, :, 0].double()).float()
        return {"rises": rises, "rises_length": batch["numbers_length"]}

    def records(self, batch: Batch) -> Batch:
        return {name: batch[name] for name in ("marks", "marks_length")}

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        shares, marks = predictions["rises"].double(), records["marks"].double()
        inside = torch.arange(marks.shape[1]) < records["marks_length"].unsqueeze(1)
        losses = F.binary_cross_entropy(shares, marks, reduction="none")
        right = ((shares >= 0.5) == (marks > 0.5)) & inside
        mean = ((losses * inside).sum(1) / records["marks_length"]).mean()
        return {"loss": round(float(mean), 5), "accuracy": float(right.sum() / inside.sum())}

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        return {**predictions[0], "rises": torch.stack([each["rises"] for each in predictions]).mean(0)}

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        pairs = zip(predictions["rises"].tolist(), predictions["rises_length"].tolist(), strict=True)
        return [{"marks": [int(share >= 0.5) for share in row[:length]]} for row, length in pairs]

    def scored_set(self, predictions: Batch, records: Batch) -> ScoredSet | None:
        return None

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        return answer["marks"], 1.0

    def target_words(self, batch: Batch, place: int) -> list[str]:
        return [" ".join(map(str, batch["marks"][place, : batch["marks_length"][place]].tolist()))]

    def columns(self) -> dict[str, type]:
        return {"marks": str}

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        return [" ".join(map(str, answer["marks"]))]

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        return self.cells(answer)
