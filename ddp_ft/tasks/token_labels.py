"""A tag for each word of a text, and the entities that the tags are of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import WORD, Batch, Task, TaskWords
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.tag_names import OUTSIDE
from ddp_ft.errors import UserError, known_names
from ddp_ft.tasks.class_weights import POSITIVE_KEY, class_weights
from ddp_ft.tasks.entities import counts_of, entities_of, precision_recall_f1, types_of
from ddp_ft.tasks.losses import LossChoice, choose_loss
from ddp_ft.tasks.metric_table import directions_of
from ddp_ft.tasks.scored.entities import ScoredEntities

SHARES, EXTENTS = "probabilities", "extents"
LOSS_DECIMALS = 5


class TokenLabels(Task):
    """One of `names`, tags, for each word. Batches carry "places" (of each word's first token, below 0 for a word that
    has none), "target" (tags, int64, B x words) with its length, and "weight" (B).

    A word without a token is outside of entities by prediction, and counts in no loss. The sum of weights counts words:
    the loss is the mean over the words of a global batch, however they are spread. `weights` (float32) are those of the
    tags.
    """

    name = "token-labels"
    kinds = TASKS[name].kinds
    words = TaskWords(
        names="tags",
        verb="finds entities by",
        hub_type="token-classification",
        pipeline_tag="token-classification",
    )
    primary_metric = TASKS[name].metric
    can_rank = False
    unit = WORD
    losses = ("cross_entropy",)

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.outputs = len(names)
        self.types = tuple(types_of(names))
        self.label_smoothing = 0.0
        self.weights: Tensor | None = None

    @classmethod
    def from_data(cls, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any]) -> "TokenLabels":
        """Return the task for training on such targets; UserError for settings that do not fit."""
        refused = {POSITIVE_KEY: config.loss.positive_weights, "eval.extra": config.eval.extra}
        for key, value in refused.items():
            if value is not None:
                raise UserError(f"{key} does not fit the task {cls.name}.", "Leave it out.")
        choice = choose_loss(config.loss, cls.name, cls.losses)
        if choice.name not in cls.losses:
            raise UserError(f"--loss {choice.name} does not fit the task {cls.name}.", f"Expected {cls.losses[0]}.")
        task = cls(names)
        task.label_smoothing = config.loss.label_smoothing
        counts = sum((np.bincount(each, minlength=len(names)) for each in targets), np.zeros(len(names), np.int64))
        task.weights = class_weights(config.loss, names, counts)
        return task

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "TokenLabels":
        """Return the task for evaluation and prediction."""
        return cls(tuple(settings["classes"]))

    @classmethod
    def unfitted(cls, names: tuple[str, ...]) -> "TokenLabels":
        """Return the task as it is before there is a model."""
        return cls(names)

    def settings(self) -> dict[str, Any]:
        """The tags; the loss is as others name it."""
        return {"classes": list(self.names), "loss": LossChoice(self.losses[0]).to_mapping(), "extra": None}

    def check(self) -> None:
        """Nothing of the user's own."""

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and summed weight of the words of a micro-batch that have a token, float32 scalars."""
        logits, seen = _of_words(outputs.float(), batch)
        target = batch["target"]
        losses = F.cross_entropy(logits[seen], target[seen], reduction="none", label_smoothing=self.label_smoothing)
        weight = batch["weight"].unsqueeze(1).expand_as(target)[seen]
        if self.weights is not None:
            self.weights = self.weights.to(target.device)
            weight = weight * self.weights[target[seen]]
        # A batch without words still takes part in the backward pass.
        return (losses * weight).sum() + 0 * outputs.float().sum(), weight.sum()

    def predictions(self, outputs: Tensor, batch: Batch) -> Batch:
        """ "probabilities": float32, B x words x tags, of a word without a token 0; and "extents" as in the batch."""
        logits, seen = _of_words(outputs.float(), batch)
        found = {SHARES: logits.softmax(-1) * seen.unsqueeze(-1), SHARES + LENGTH: batch["places" + LENGTH]}
        return found | {name: batch[name] for name in (EXTENTS, EXTENTS + LENGTH) if name in batch}

    def records(self, batch: Batch) -> Batch:
        """Targets and weights."""
        return {name: batch[name] for name in ("target", "target" + LENGTH, "weight")}

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """Precision, recall and F1 of entities, the accuracy of words, the mean loss of words with a token, and the
        share of words without one ("unseen")."""
        shares, tags, _ = self._flat(predictions)
        target = _in_sequence(records["target"], records["target" + LENGTH])
        seen = shares.sum(-1) > 0
        own = shares.double().gather(1, target.unsqueeze(1)).squeeze(1)[seen]
        loss = float(-own.clamp_min(torch.finfo(torch.float32).tiny).log().mean()) if len(own) else 0.0
        right, found, there = self._counts(predictions, records).sum((1, 2)).tolist()
        precision, recall, f1 = precision_recall_f1(right, found, there)
        return {
            "loss": round(loss, LOSS_DECIMALS),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "accuracy": float((tags == target).double().mean()) if len(target) else 0.0,
            "unseen": float((~seen).double().mean()) if len(target) else 0.0,
        }

    def _flat(self, predictions: Batch) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """The probabilities and tags of all words in sequence, and each sample's number of words."""
        lengths = predictions[SHARES + LENGTH]
        shares = _in_sequence(predictions[SHARES], lengths)
        return shares, self._tags(shares), lengths.numpy()

    def _tags(self, shares: Tensor) -> Tensor:
        """The likeliest tags; "O" where nothing is known."""
        outside = self.names.index(OUTSIDE)
        return torch.where(shares.sum(-1) > 0, shares.argmax(-1), outside)

    def _counts(self, predictions: Batch, records: Batch) -> NDArray[np.int64]:
        _, tags, lengths = self._flat(predictions)
        target = _in_sequence(records["target"], records["target" + LENGTH])
        found, true = (entities_of(each.numpy(), lengths, self.names) for each in (tags, target))
        return counts_of(found, true, len(lengths), len(self.types))

    def higher_is_better(self, metric: str) -> bool:
        """As in `Task`."""
        known = directions_of("loss", "f1", "precision", "recall", "accuracy", "unseen")
        if metric not in known:
            raise UserError(f"eval.metric = '{metric}' is no metric of {self.name}.", known_names(metric, list(known)))
        return known[metric]

    def scored_set(self, predictions: Batch, records: Batch) -> ScoredEntities:
        """The counts of entities of each sample."""
        if SHARES not in predictions:
            raise UserError(f"not of the task {self.name}.")
        if predictions[SHARES].shape[-1] != self.outputs:
            raise UserError(f"not of {self.outputs} tags.")
        right, found, there = self._counts(predictions, records).astype(np.float64)
        return ScoredEntities(self.types, np.stack([found, right], -1), there)

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """The mean of the probabilities."""
        return {**predictions[0], SHARES: torch.stack([each[SHARES] for each in predictions]).mean(0)}

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """The "entities" of each sample: "type", "start" and "end" in characters of the text (in words, if these have
        targets), and the mean "probability" of the tags."""
        shares, tags, lengths = self._flat(predictions)
        entities = entities_of(tags.numpy(), lengths, self.names)
        sure, firsts = shares.max(-1).values.numpy() if len(shares) else np.zeros(0), np.cumsum(lengths) - lengths
        found: list[list[dict[str, Any]]] = [[] for _ in lengths]
        for sample, kind, start, stop in zip(*(column.tolist() for column in entities), strict=True):
            first = int(firsts[sample])
            begin, end = self._extent(predictions, sample, start, stop)
            probability = float(sure[first + start : first + stop].mean())
            found[sample].append({"type": self.types[kind], "start": begin, "end": end, "probability": probability})
        return [{"entities": each} for each in found]

    def _extent(self, predictions: Batch, sample: int, start: int, stop: int) -> tuple[int, int]:
        if EXTENTS not in predictions:
            return start, stop
        extents = predictions[EXTENTS][sample]
        return int(extents[start, 0]), int(extents[stop - 1, 1])

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """The entities, and the least of their probabilities."""
        found = tuple((each["type"], each["start"], each["end"]) for each in answer["entities"])
        return found, min((each["probability"] for each in answer["entities"]), default=1.0)

    def deciding_at(self, thresholds: Sequence[float]) -> Task:
        """UserError: a word has its likeliest tag."""
        raise UserError(f"--threshold: the model is for {self.name}, where a word has its likeliest tag.")

    def columns(self) -> dict[str, type]:
        """One, of entities."""
        return {"entities": list}

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """The entities, as START-END TYPE each."""
        return [[f"{each['start']}-{each['end']} {each['type']}" for each in answer["entities"]]]

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """The same in one cell."""
        return [";".join(cell) for cell in self.cells(answer)]

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The types of the sample's entities."""
        count = int(batch["target" + LENGTH][place])
        tags = batch["target"][place, :count].numpy()
        return [self.types[kind] for kind in entities_of(tags, np.array([count]), self.names).kind.tolist()]

    def initial_bias(self) -> Tensor | None:
        """None."""
        return None


def _of_words(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The outputs at the words' first tokens (B x words x outputs), and which words have one (bool, B x words)."""
    places = batch["places"]
    counted = torch.arange(places.shape[1], device=places.device) < batch["places" + LENGTH].unsqueeze(1)
    at = places.clamp_min(0).unsqueeze(-1).expand(-1, -1, outputs.shape[-1])
    return outputs.gather(1, at), counted & (places >= 0)


def _in_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """The values (N x most x ...) of all samples, one after the other, without padding."""
    return values[torch.arange(values.shape[1]) < lengths.unsqueeze(1)]
