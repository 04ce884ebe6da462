"""From decoded pictures to those of the model's size, on the CPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from ddp_ft.config import AugmentConfig
from ddp_ft.contracts import Preprocess
from ddp_ft.data.augment import distortions
from ddp_ft.data.picture import Box, Image, Sized, cut, size_of
from ddp_ft.errors import UserError, nearest

# A picture or a tensor of any size to a tensor of the model's.
Transform = Callable[[Any], Tensor]

# The names are timm's. Lanczos on tensors is new in torchvision 0.29; bicubic is as near as older ones come, and
# the same on all. Nearest-exact is what Pillow's nearest does.
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.BICUBIC,
    "random": InterpolationMode.BICUBIC,
}
_NOTHING = torch.empty((), dtype=torch.uint8)
CROP_MODES = ("center", "squash", "border")
CROP_RATIO = (3 / 4, 4 / 3)  # aspect ratios of the random crop: Inception's, as in timm and torchvision


def train_transform(preprocess: Preprocess, augment: AugmentConfig) -> Transform:
    """Random crop, resize and flip, then `distortions`: uint8 3 x H x W of any size -> uint8 3 x preprocess.size.

    Draws from torch's global CPU generator. Raises UserError for an unknown interpolation or policy.
    """
    crop, distort = _TrainTransform(preprocess, augment), distortions(preprocess, augment)
    return crop if distort is None else _Both(crop, distort)


def eval_transform(preprocess: Preprocess) -> Transform:
    """What timm's evaluation does to a picture: uint8 C x H x W of any size -> uint8 C x preprocess.size.

    Follows timm.data.transforms_factory.transforms_imagenet_eval for all three crop modes; on uint8 tensors
    instead of Pillow's images, which is twice as fast. Raises UserError for an unknown interpolation or mode.
    """
    if preprocess.crop_mode not in CROP_MODES:
        hint = f"Known: {', '.join(CROP_MODES)}."
        raise UserError(f"The model's preprocessing asks for crop mode '{preprocess.crop_mode}'.", hint)
    return _EvalTransform(preprocess)


def _interpolation(preprocess: Preprocess) -> InterpolationMode:
    name = preprocess.interpolation
    if name not in INTERPOLATIONS:
        hint = nearest(name, list(INTERPOLATIONS)) or f"Known: {', '.join(INTERPOLATIONS)}."
        raise UserError(f"The model's preprocessing asks for interpolation '{name}'.", hint)
    return INTERPOLATIONS[name]


class _TrainTransform:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip, draw for draw, in two thirds of the time."""

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig) -> None:
        self.interpolation = _interpolation(preprocess)
        self.crop = v2.RandomResizedCrop(preprocess.size, (augment.crop_min, 1.0), CROP_RATIO)
        self.size = list(preprocess.size)
        self.flip = augment.flip

    def __call__(self, image: Image) -> Tensor:
        # Only the shape is looked at, and this has it without any pixels.
        box = self.crop.make_params([_NOTHING.expand(3, *size_of(image))])
        part = cut(image, Sized(Box(**box), *self.size))
        resized: Tensor = F.resize_image(part, self.size, self.interpolation, antialias=True)
        return F.horizontal_flip_image(resized) if torch.rand(1) < self.flip else resized


class _Both:
    """One transform after the other; unlike a closure it can be sent to a spawned worker."""

    def __init__(self, first: Transform, second: Transform) -> None:
        self.first = first
        self.second = second

    def __call__(self, image: Image) -> Tensor:
        return self.second(self.first(image))


class _EvalTransform:
    def __init__(self, preprocess: Preprocess) -> None:
        self.size = preprocess.size
        self.mode = preprocess.crop_mode
        self.interpolation = _interpolation(preprocess)
        self.fill = [float(round(255 * value)) for value in preprocess.mean] if self.mode == "border" else [0.0]
        height, width = preprocess.size
        self.scaled = (math.floor(height / preprocess.crop_pct), math.floor(width / preprocess.crop_pct))

    def __call__(self, image: Image) -> Tensor:
        box = Box(0, 0, *size_of(image))
        if self.mode == "center":
            box = _without_far_ends(box, self.size)
        new_size = self._resized(box.height, box.width)
        part = cut(image, Sized(box, *new_size))
        return _crop_or_pad(F.resize_image(part, new_size, self.interpolation, antialias=True), self.size, self.fill)

    def _resized(self, height: int, width: int) -> list[int]:
        target_height, target_width = self.scaled
        if self.mode == "squash":
            return [target_height, target_width]
        if self.mode == "center" and target_height == target_width:
            # torchvision's Resize truncates where timm's ResizeKeepRatio, below, rounds.
            short = min(height, width)
            return [target_height * height // short, target_width * width // short]
        ratios = (height / target_height, width / target_width)
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return [max(1, round(height / ratio)), max(1, round(width / ratio))]


def _without_far_ends(box: Box, size: tuple[int, int]) -> Box:
    """The middle of a very long strip, much more of it than is seen in the end.

    Scaled by its short side, a picture of 5000 x 1 pixels would take a gigabyte.
    """
    kept = 8 * min(box.height, box.width) * -(-max(size) // min(size))
    top, left = max(0, (box.height - kept) // 2), max(0, (box.width - kept) // 2)
    return Box(top, left, box.height - 2 * top, box.width - 2 * left)


def _crop_or_pad(image: Tensor, size: tuple[int, int], fill: list[float]) -> Tensor:
    """The middle of the picture, with `fill` around it where it is smaller than `size` (timm's CenterCropOrPad)."""
    missing = [max(0, wanted - given) for wanted, given in zip(size, image.shape[-2:], strict=True)]
    if any(missing):
        down, across = missing
        padding = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
        image = F.pad_image(image, padding, fill=fill)
    top, left = (round((given - wanted) / 2) for wanted, given in zip(size, image.shape[-2:], strict=True))
    return image[..., top : top + size[0], left : left + size[1]]
