"""A trained model in Python: `ddp_ft.load("runs/x")("a.jpg")`, or `("a text")`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import nn

from ddp_ft.config.paths import path_of
from ddp_ft.data.given import Given, GivenSamples
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.inference.asked import Asked, Thresholds, parse_thresholds
from ddp_ft.inference.ensemble import with_views
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.thresholds import choose_thresholds, deciding_at
from ddp_ft.inference.trained_model import Trained, load_trained


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image or a text.

    `label` is the likeliest class and `probability` its probability; for a model of several labels each, `labels`
    are all from their threshold on (0.5 unless given), and `label` is None. `probabilities` has all classes, by name.
    For regression, `values` has the numbers by name, in the units of the training data, and the rest is empty. So it is
    where words are labelled: `entities` has each one's "type", "start", "end" (characters) and "probability".
    """

    label: str | None = None
    probability: float | None = None
    labels: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    entities: tuple[Mapping[str, Any], ...] = ()


class Model:
    """A trained model in evaluation mode, on its device.

    `module` is the network: float32 B x C x height x width, from `preprocess`, to float32 B x outputs, before softmax,
    sigmoid or the target's units; for texts it takes input_ids, attention_mask, token_type_ids by name, and its result
    has them as `logits`. `classes` are the names of its outputs, in their order. `task` is "single-label",
    "multi-label", "regression" or "token-labels".
    """

    def __init__(self, trained: Trained, device: torch.device, views: str | None = None) -> None:
        viewed = with_views(trained, views)
        self._task = trained.task
        self._scorer = make_scorer(viewed, World(0, 1, 0, device))
        self._plain, self._viewed = trained.processor, viewed.processor
        self._given = GivenSamples(trained.processor)
        self.module: nn.Module = trained.module
        self.classes: tuple[str, ...] = trained.names
        self.task: str = trained.task.name

    def preprocess(self, given: Given) -> Any:
        """The image as `module` takes it: float32 C x height x width, on the model's device; of a text or a pair the
        module's arguments by name, int64 1 x tokens each.

        UserError for what is no image, or no text.
        """
        return self._given.prepared(self._scorer.prepare(self._given.batch([given], self._plain)))

    @overload
    def __call__(self, given: Given) -> Prediction: ...
    @overload
    def __call__(self, given: list[Any]) -> list[Prediction]: ...
    @overload
    def __call__(self, given: tuple[Any, ...]) -> Any: ...
    def __call__(self, given: Any) -> Any:
        """A prediction for an image or a text, or a list of them for a list. A tuple is a pair of texts, or as good as
        a list of images. UserError for an argument that is none."""
        if not self._given.is_one(given):
            return list(self._predictions(given))
        [prediction] = self._predictions([given])
        return prediction

    def _predictions(self, given: Sequence[Any]) -> Iterator[Prediction]:
        for start in range(0, len(given), EVAL_CHUNK):
            batch = self._given.batch(given[start : start + EVAL_CHUNK], self._viewed)
            yield from map(_prediction, self._task.answers(self._scorer.predictions(batch)))


def load(
    path: str | os.PathLike[str], device: str = "auto", tta: str | None = None, threshold: Thresholds | None = None
) -> Model:
    """The model of a run folder, its best/, or a file that `ddp-ft export` wrote (.onnx, .pt2, a folder).

    `device` is "auto", "cpu" or "cuda"; `tta` "none", "flip" or "crops", by default as the run chose, as for `ddp-ft
    predict`, which computes the same numbers. `threshold`, for several labels, is a probability, one for each of some
    names, or a text as for --threshold. Raises UserError if it cannot be loaded.
    """
    found, place = pick_device(device, Launch()), path_of(os.fspath(path))
    given = parse_thresholds(threshold) if isinstance(threshold, str) else threshold
    trained = load_trained(place, found)
    thresholds = choose_thresholds(trained.task, Asked((place,), tta, device, given), World(0, 1, 0, found))
    [trained] = deciding_at([trained], thresholds)
    return Model(trained, found, tta)


def _prediction(answer: dict[str, Any]) -> Prediction:
    labels = answer.get("classes", [answer["class"]] if "class" in answer else [])
    return Prediction(
        answer.get("class"), answer.get("probability"), tuple(labels), answer.get("probabilities", {}),
        answer.get("values", {}), tuple(answer.get("entities", ())),
    )  # fmt: skip
