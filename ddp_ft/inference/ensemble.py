"""Several models, or several views of each image, whose predictions are averaged."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import five_crop

from ddp_ft.contracts import Task
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


def combine_members(members: Sequence[Trained], outputs: Sequence[Tensor]) -> Tensor:
    """The members' outputs (float32, B x outputs each) as one, in the terms of the first member's task."""
    if len(members) == 1:
        return outputs[0]
    task = members[0].task
    restated = [_restate(each, member.task, task) for member, each in zip(members, outputs, strict=True)]
    return task.combine(restated).float()


def _restate(outputs: Tensor, task: Task, other: Task) -> Tensor:
    """Outputs of one task as another one of the same name would put them.

    Regression standardises by its own training set: its predictions are a straight line of its outputs, which two
    points give. Tasks without settings of that kind predict the same from the same outputs, and nothing is done.
    """
    points = torch.stack([torch.zeros(other.outputs), torch.ones(other.outputs)])
    own, wanted = task.predictions(points), other.predictions(points)
    if torch.equal(own, wanted):
        return outputs
    return ((task.predictions(outputs) - wanted[0]) / (wanted[1] - wanted[0])).float()


class Views(nn.Module):
    """A model that looks at several views of each picture, one after the other, and combines what it finds.

    Called with normalised pictures, float B x C x H x W; for CROPS they are wider than `size`, (height, width), which
    the model is called with. Gives the task's combination of the views' outputs, float32.
    """

    def __init__(self, module: nn.Module, task: Task, views: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.module = module
        self.task = task
        self.views = views
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        # Models may count on the memory format that they are given in training.
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        crops = five_crop(images, list(self.size)) if self.views == CROPS else [images]
        views = [view for crop in crops for view in (crop, crop.flip(-1))]
        outputs = [self.module(view.contiguous(memory_format=memory_format)) for view in views]
        return self.task.combine([each.float() for each in outputs]).float()


def with_views(trained: Trained, views: str) -> Trained:
    """The model with test-time augmentation; `views` is one of VIEWS."""
    if views == NO_VIEWS:
        return trained
    if isinstance(trained.module, Framed):
        raise UserError(
            f"--tta {views} does not work with a file that has its preprocessing inside.",
            "Export it without --with-preprocessing, or use the run folder.",
        )
    size, preprocess = trained.preprocess.size, trained.preprocess
    if views == CROPS:
        share = min(preprocess.crop_pct, CROPS_SHARE)
        height, width = (math.floor(pixels / share) for pixels in size)
        preprocess = replace(preprocess, size=(height, width), crop_pct=1.0)
    module = Views(trained.module, trained.task, views, size).eval()
    return replace(trained, module=module, preprocess=preprocess)
