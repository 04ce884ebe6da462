"""A trained model in Python: `ddp_ft.load("runs/x")("a.jpg")`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn

from ddp_ft.config.paths import path_of
from ddp_ft.data.image.given import ImageLike, channels_of, resized
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.inference.asked import Asked, Thresholds, parse_thresholds
from ddp_ft.inference.ensemble import with_views
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.thresholds import choose_thresholds, deciding_at
from ddp_ft.inference.trained_model import Trained, load_trained


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    `label` is the likeliest class and `probability` its probability; for a model of several labels an image, `labels`
    are all from their threshold on (0.5 unless given), and `label` is None. `probabilities` has all classes, by name.
    For regression, `values` has the numbers by name, in the units of the training data, and the rest is empty.
    """

    label: str | None = None
    probability: float | None = None
    labels: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


class Model:
    """A trained model in evaluation mode, on its device.

    `module` is the network: float32 B x C x height x width, from `preprocess`, to float32 B x outputs, before softmax,
    sigmoid or the target's units. `classes` are the names of its outputs, in their order. `task` is "single-label",
    "multi-label" or "regression".
    """

    def __init__(self, trained: Trained, device: torch.device, views: str | None = None) -> None:
        if trained.processor.kind != "image":
            raise UserError(f"This model is not for images, but for '{trained.processor.kind}'.", "Use ddp-ft predict.")
        viewed = with_views(trained, views)
        self._task = trained.task
        self._scorer = make_scorer(viewed, World(0, 1, 0, device))
        self._transform, self._view_transform = trained.processor.eval_transform(), viewed.processor.eval_transform()
        self._channels = channels_of(trained.processor)
        self.module: nn.Module = trained.module
        self.classes: tuple[str, ...] = trained.names
        self.task: str = trained.task.name

    def preprocess(self, image: ImageLike) -> Tensor:
        """The image as `module` takes it: float32 C x height x width, on the model's device.

        UserError for what is no image.
        """
        given = {"image": resized(image, self._transform, self._channels)[None]}
        prepared: Tensor = self._scorer.prepare(given)["image"]
        return prepared[0]

    @overload
    def __call__(self, images: ImageLike) -> Prediction: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
    def __call__(self, images: ImageLike | list[Any] | tuple[Any, ...]) -> Prediction | list[Prediction]:
        """A prediction for an image, or a list of them for a list. UserError for an argument that is no image."""
        if isinstance(images, (list, tuple)):
            return list(self._predictions(images))
        [prediction] = self._predictions([images])
        return prediction

    def _predictions(self, images: Sequence[ImageLike]) -> Iterator[Prediction]:
        for start in range(0, len(images), EVAL_CHUNK):
            chosen = images[start : start + EVAL_CHUNK]
            stacked = torch.stack([resized(each, self._view_transform, self._channels) for each in chosen])
            predictions = self._scorer.predictions({"image": stacked, "index": torch.arange(len(stacked))})
            yield from map(_prediction, self._task.answers(predictions))


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
        answer.get("values", {}),
    )  # fmt: skip
