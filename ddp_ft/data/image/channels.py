"""Pixels of another number of channels: colours as grey, and grey as colours."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddp_ft.contracts import BadSample
from ddp_ft.data.image.arrays import Misfit

# Weights of red, green and blue, of 65,536: ITU-R BT.601's in Pillow's arithmetic.
_LUMA = (19595, 38470, 7471)


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8, C x H x W, of 1 or 3 channels as 3 or 1; of 4 as 3, without alpha; others as they are. BadSample if the
    number is another.

    Grey is what Pillow's mode L has; where the three channels are equal it is one of them.
    """
    given = pixels.shape[0]
    if given == channels:
        return pixels
    if (given, channels) == (1, 3):
        return pixels.expand(3, -1, -1)
    if (given, channels) == (4, 3):  # given by a program: of files alpha is gone, and four bands are a Misfit
        return pixels[:3]
    if (given, channels) != (3, 1):
        wrong = Misfit(given, channels)
        raise BadSample(str(wrong)) from wrong
    if pixels.device.type == "cpu":  # in a third of the time
        return torch.from_numpy(np.array(Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")))[None]
    return as_grey(pixels)


def as_grey(pixels: Tensor) -> Tensor:
    """uint8, 3 x H x W -> 1 x H x W, as Pillow's mode L, on any device."""
    red, green, blue = (weight * plane.to(torch.int32) for weight, plane in zip(_LUMA, pixels, strict=True))
    grey: Tensor = (red + green + blue + 32768) >> 16
    return grey.to(torch.uint8)[None]
