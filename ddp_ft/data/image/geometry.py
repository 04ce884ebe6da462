"""Where the pixels of a training image go: flips and turns, which are exact, and one affine resampling."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ddp_ft.config.schema import AugmentConfig


class Turn(NamedTuple):
    """Whether an image is mirrored left to right and top to bottom, and by how many right angles it is then turned
    against the clock (0 to 3)."""

    flip: bool
    vertical: bool
    quarters: int

    def size_before(self, size: Sequence[int]) -> list[int]:
        """(height, width) of the image that has `size` when it is turned."""
        return [size[1], size[0]] if self.quarters % 2 else list(size)

    def __call__(self, image: Tensor) -> Tensor:
        """... x H x W -> the same pixels in their new places, a view or a copy."""
        mirrored = [dimension for dimension, is_so in ((-1, self.flip), (-2, self.vertical)) if is_so]
        image = image.flip(mirrored) if mirrored else image
        return torch.rot90(image, self.quarters, (-2, -1)) if self.quarters else image


def draw_turn(augment: AugmentConfig) -> Turn:
    """Draw from torch's global CPU generator; nothing is drawn for the keys vertical_flip and right_angles where they
    are 0, so runs without them have the draws of versions without the keys."""
    flip = bool(torch.rand(1) < augment.flip)
    vertical = augment.vertical_flip > 0 and bool(torch.rand(1) < augment.vertical_flip)
    is_turned = augment.right_angles > 0 and bool(torch.rand(1) < augment.right_angles)
    return Turn(flip, vertical, int(torch.randint(1, 4, ())) if is_turned else 0)


def affine(augment: AugmentConfig, fill: Sequence[float]) -> Callable[[Tensor], Tensor] | None:
    """Rotation, shift and change of size as torchvision's one affine resampling; None if there is none of them.

    Bilinear; empty places become `fill`, one value for each channel.
    """
    if not (augment.rotation or augment.translation or augment.scale):
        return None
    return v2.RandomAffine(
        (-augment.rotation, augment.rotation),
        (augment.translation, augment.translation) if augment.translation else None,
        (1 - augment.scale, 1 + augment.scale) if augment.scale else None,
        interpolation=InterpolationMode.BILINEAR,
        fill=list(fill),
    )
