"""A part of an image, decoded no further than needed."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ddp_ft.contracts import Batch, Sample
from ddp_ft.data.image.channels import with_channels
from ddp_ft.data.image.pillow import Pixels, ValueRange

# How much larger than needed an image stays when it is shrunk while decoding: 2, as for Pillow's thumbnails, gives
# almost the result of the whole image.
SPARE = 2
_SHRINKS = (8, 4, 2)


class Box(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class Undecoded(Protocol):
    """An image that is decoded when a part of it is needed."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright, from the file's header."""

    def pixels(self, shrink: int) -> Pixels:
        """All of it, H x W x C, with sides of about 1/shrink (1, 2, 4, 8), or of 1 if it cannot shrink. Raises
        BadSample."""

    def asked(self, channels: int, value_range: ValueRange | None) -> "Undecoded":
        """The image in so many channels (grey or colours if that is 1 or 3), and with these values as black and white
        if it has more than 8 bits. BadSample if it has another number of channels."""


# What transforms take: an image, decoded or not (Tensor: uint8, C x H x W).
Image = Undecoded | Tensor


def whole(image: Image, channels: int | None = None) -> Tensor:
    """All of it: uint8, C x H x W, a view of interleaved pixels if it comes from a file; `channels` as for `cut`."""
    pixels = image if isinstance(image, Tensor) else as_tensor(image.pixels(1))
    return pixels if channels is None else with_channels(pixels, channels)


def asked(image: Image, channels: int, value_range: ValueRange | None = None) -> Image:
    """The image as `Undecoded.asked` returns it; one that is decoded already as it is."""
    return image if isinstance(image, Tensor) else image.asked(channels, value_range)


def decoded(sample: Sample) -> Batch:
    """The sample as `Source.read` returns it, from one that is open. Raises BadSample."""
    return {**sample, "image": whole(sample["image"])}


def as_tensor(pixels: Pixels) -> Tensor:
    """H x W x C as C x H x W, a view of interleaved pixels without gaps."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def size_of(image: Image) -> tuple[int, int]:
    """(height, width)."""
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else image.size


def cut(image: Image, box: Box, size: Sequence[int], decoder: str = "shrink", channels: int | None = None) -> Tensor:
    """The part as uint8, C x h x w, a view of interleaved pixels without gaps, on which resizing is fastest.

    With the decoder "shrink" it is smaller, if it stays SPARE times as large as the `size` (height, width) that it will
    be resized to. `channels`: how many it is to have; None: as many as there are. Raises BadSample.
    """
    part = _part(image, box, size, decoder)
    return part if channels is None else with_channels(part, channels)


def _part(image: Image, box: Box, size: Sequence[int], decoder: str) -> Tensor:
    if isinstance(image, Tensor):
        top, left, height, width = box
        part = image[:, top : top + height, left : left + width]
        return part.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    spare = min(box.height / size[0], box.width / size[1]) / SPARE
    factors = [factor for factor in _SHRINKS if factor <= spare] if decoder == "shrink" else []
    pixels = image.pixels(max(factors, default=1))
    scale = (pixels.shape[0] / image.size[0], pixels.shape[1] / image.size[1])
    rows = _scaled(box.top, box.height, scale[0])
    columns = _scaled(box.left, box.width, scale[1])
    return as_tensor(pixels[rows, columns])


def _scaled(start: int, length: int, scale: float) -> slice:
    first = round(start * scale)
    return slice(first, first + max(1, round(length * scale)))
