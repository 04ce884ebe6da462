"""Several models, or several views of each image, whose predictions are averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import five_crop

from ddp_ft.contracts import Batch
from ddp_ft.data.image.processor import ImageProcessor, preprocess_of
from ddp_ft.errors import UserError
from ddp_ft.inference.exported import Framed
from ddp_ft.inference.trained_model import Trained, load_trained

# Test-time augmentation: the picture as it is; with its mirror image; five crops of it, each with its mirror image.
NO_VIEWS, FLIP, CROPS = VIEWS = ("none", "flip", "crops")
# The five crops are taken from a picture at least that much wider: 256 for crops of 224 pixels (AlexNet's ten views).
CROPS_SHARE = 224 / 256


def load_ensemble(paths: Sequence[Path], device: torch.device, views: str = NO_VIEWS) -> list[Trained]:
    """The models of several run folders. UserError, with all differences, unless all tell the same of a picture."""
    members = [with_views(load_trained(path, device), views) for path in paths]
    differences = [
        f"  {path}: {difference}"
        for path, member in zip(paths[1:], members[1:], strict=True)
        for difference in _differences(members[0], member)
    ]
    if differences:
        raise UserError(
            f"These models cannot be combined with {paths[0]}:\n" + "\n".join(differences),
            "Models of an ensemble have the same task and the same classes, in the same order.",
        )
    return members


def _differences(first: Trained, other: Trained) -> list[str]:
    if first.task.name != other.task.name:
        return [f"its task is {other.task.name}, not {first.task.name}"]
    more, fewer = (
        ", ".join(name for name in some.names if name not in others.names)
        for some, others in ((other, first), (first, other))
    )
    found = [f"it knows {more} in addition"] if more else []
    found += [f"it does not know {fewer}"] if fewer else []
    if not found and first.names != other.names:
        found = [f"it has the names in another order: {', '.join(other.names)}"]
    return found


def combine_members(members: Sequence[Trained], predictions: Sequence[Batch]) -> Batch:
    """The members' predictions of the same samples as one."""
    return predictions[0] if len(members) == 1 else members[0].task.combine(predictions)


@dataclass(frozen=True)
class ImageViews:
    """What a model looks at instead of an image; for CROPS of `size`, (height, width), from one that is larger."""

    views: str
    size: tuple[int, int]

    def __call__(self, batch: Batch) -> list[Batch]:
        """A prepared batch, with "image" float B x C x H x W, to several of them."""
        return [{**batch, "image": view} for view in self._seen(batch["image"])]

    def _seen(self, images: Tensor) -> list[Tensor]:
        # Models may count on the memory format that they are given in training.
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        crops = five_crop(images, list(self.size)) if self.views == CROPS else [images]
        views = [view for crop in crops for view in (crop, crop.flip(-1))]
        return [view.contiguous(memory_format=memory_format) for view in views]


def with_views(trained: Trained, views: str) -> Trained:
    """The model with test-time augmentation; `views` is one of VIEWS."""
    if views == NO_VIEWS:
        return trained
    if isinstance(trained.module, Framed):
        raise UserError(
            f"--tta {views} does not work with a file that has its preprocessing inside.",
            "Export it without --with-preprocessing, or use the run folder.",
        )
    preprocess = preprocess_of(trained.processor)
    size = preprocess.size
    if views == CROPS:
        share = min(preprocess.crop_pct, CROPS_SHARE)
        height, width = (math.floor(pixels / share) for pixels in size)
        preprocess = replace(preprocess, size=(height, width), crop_pct=1.0)
    return replace(trained, views=ImageViews(views, size), processor=ImageProcessor(preprocess))
