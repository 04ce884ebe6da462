"""From decoded images to those of the model's size, on the CPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.arrays import AS_PHOTOS
from ddp_ft.data.image.augment import distortions
from ddp_ft.data.image.geometry import draw_turn
from ddp_ft.data.image.own_transform import check_own_transform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.undecoded import Box, Image, asked, cut, size_of
from ddp_ft.errors import UserError, known_names

# An image of any size, decoded or not, to a tensor of the model's size.
ImageFunction = Callable[[Any], Tensor]

# The names are timm's. Lanczos on tensors is new in torchvision 0.29; bicubic is nearest to it in older ones, and the
# same in all. Nearest-exact is what Pillow's nearest does.
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.BICUBIC,
    "random": InterpolationMode.BICUBIC,
}
CROP_MODES = ("center", "squash", "border")
# Aspect ratios of the random crop, and how often one is drawn until it fits: Inception's, as in timm and torchvision.
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


def train_transform(preprocess: Preprocess, augment: AugmentConfig) -> ImageFunction:
    """Random crop, resize, flips and turns, then `distortions`: uint8 C x H x W of any size -> uint8 C x the model's.

    Draws from torch's global CPU generator. UserError for an unknown interpolation or policy.
    """
    return _TrainTransform(preprocess, augment)


def check_augmentation(augment: AugmentConfig, image: Tensor) -> None:
    """Try the user's own part of it, if there is one, on an image of the model's size (uint8 C x H x W). UserError if
    it breaks its contract."""
    if augment.transform is not None:
        check_own_transform(augment.transform, image)


def eval_transform(preprocess: Preprocess) -> ImageFunction:
    """The transform of timm's evaluation: uint8 C x H x W of any size -> uint8 C x preprocess.size.

    As timm.data.transforms_factory.transforms_imagenet_eval in all three crop modes, but on uint8 tensors instead of
    Pillow's images, which is twice as fast. UserError for an unknown interpolation or mode.
    """
    if preprocess.crop_mode not in CROP_MODES:
        hint = f"Known: {', '.join(CROP_MODES)}."
        raise UserError(f"The model's preprocessing asks for crop mode '{preprocess.crop_mode}'.", hint)
    return _EvalTransform(preprocess)


def check_colours(augment: AugmentConfig, channels: int) -> None:
    """Raise UserError for what is about colours where images have none, or about one or three channels of many."""
    off = {"grey=0": augment.grey > 0} if channels != 3 else {}
    if channels not in AS_PHOTOS:
        off |= {"policy=none": augment.policy != "none", "color_jitter=0": augment.color_jitter > 0}
    if asked_for := [f"augment.{text}" for text, is_on in off.items() if is_on]:
        names = " and ".join(text.partition("=")[0] for text in asked_for)
        what = "an image of one channel" if channels == 1 else f"images of {channels} channels"
        hint = f"Turn it off: {' '.join(f'--set {text}' for text in asked_for)} (--augment {augment.preset})."
        raise UserError(f"{names} cannot be applied to {what}.", hint)


def interpolation_of(preprocess: Preprocess) -> InterpolationMode:
    """The interpolation of resizing. UserError for an unknown name."""
    name = preprocess.interpolation
    if name not in INTERPOLATIONS:
        hint = known_names(name, list(INTERPOLATIONS))
        raise UserError(f"The model's preprocessing asks for interpolation '{name}'.", hint)
    return INTERPOLATIONS[name]


class _TrainTransform:
    """RandomResizedCrop and RandomHorizontalFlip in torchvision's distribution and half its time, then distortions."""

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig) -> None:
        self.interpolation = interpolation_of(preprocess)
        self.size = list(preprocess.size)
        self.preprocess = preprocess
        self.augment = augment
        self.distort = distortions(preprocess, augment)

    def __call__(self, image: Image) -> Tensor:
        preprocess = self.preprocess
        image = asked(image, preprocess.channels, preprocess.value_range)
        box = draw_crop(*size_of(image), self.augment.crop_min)
        turn = draw_turn(self.augment)
        # The part is turned, and then has the model's size: sides need not be equal.
        size = turn.size_before(self.size)
        part = cut(image, box, size, preprocess.decoder, preprocess.channels)
        seen = turn(F.resize_image(part, size, self.interpolation, antialias=True))
        return self.distort(seen) if self.distort else seen


def draw_crop(height: int, width: int, least_area: float) -> Box:
    """Draw the crop for training: at least `least_area` of the image, with an aspect ratio within CROP_RATIO.

    Area, logarithm of the ratio and place are uniform. If no drawn shape fits, it is the largest central one that does.
    Draws once, from torch's global CPU generator.
    """
    *tries, down, across = torch.rand(2 * CROP_TRIES + 2, dtype=torch.float64).tolist()
    narrowest, widest = CROP_RATIO
    for share, shape in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (least_area + (1 - least_area) * share)
        ratio = narrowest * (widest / narrowest) ** shape
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            return Box(int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide)
    tall, wide = min(height, round(width / narrowest)), min(width, round(height * widest))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


class _EvalTransform:
    def __init__(self, preprocess: Preprocess) -> None:
        self.size = preprocess.size
        self.mode = preprocess.crop_mode
        self.preprocess = preprocess
        self.interpolation = interpolation_of(preprocess)
        self.fill = [float(round(255 * value)) for value in preprocess.mean] if self.mode == "border" else [0.0]
        height, width = preprocess.size
        self.scaled = (math.floor(height / preprocess.crop_pct), math.floor(width / preprocess.crop_pct))

    def __call__(self, image: Image) -> Tensor:
        preprocess = self.preprocess
        image = asked(image, preprocess.channels, preprocess.value_range)
        box = Box(0, 0, *size_of(image))
        if self.mode == "center":
            box = _without_far_ends(box, self.size)
        new_size = self._resized(box.height, box.width)
        part = cut(image, box, new_size, preprocess.decoder, preprocess.channels)
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
    """The middle of a very long strip, much more than the crop shows: scaled by its short side, an image of 5000 x 1
    pixels would take a gigabyte."""
    kept = 8 * min(box.height, box.width) * -(-max(size) // min(size))
    top, left = max(0, (box.height - kept) // 2), max(0, (box.width - kept) // 2)
    return Box(top, left, box.height - 2 * top, box.width - 2 * left)


def _crop_or_pad(image: Tensor, size: tuple[int, int], fill: list[float]) -> Tensor:
    """The middle of the image, padded with `fill` if it is smaller than `size` (timm's CenterCropOrPad)."""
    missing = [max(0, wanted - given) for wanted, given in zip(size, image.shape[-2:], strict=True)]
    if any(missing):
        down, across = missing
        padding = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
        image = F.pad_image(image, padding, fill=fill)
    top, left = (round((given - wanted) / 2) for wanted, given in zip(size, image.shape[-2:], strict=True))
    return image[..., top : top + size[0], left : left + size[1]]
