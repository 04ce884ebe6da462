"""Images read by Pillow, in the formats of photographs. Free of torch."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]  # H x W x 3

ORIENTATION = 0x0112  # the EXIF tag
_TIFF_BITS_PER_SAMPLE = 258
# Formats that are decoded. Pillow has more: EPS runs Ghostscript on a file that may hold anything; others are rare.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def read_pixels(path: Path | str) -> Pixels:
    """The image upright (EXIF), the first frame of an animation, without its alpha; grey of more than 8 bits scaled
    down. Raises Pillow's exceptions, of many types, for a damaged image."""
    with quiet_pillow(), Image.open(path, formats=known_formats()) as image:
        image.load()
        return as_pixels(image)


def as_pixels(image: Image.Image) -> Pixels:
    """A Pillow image as `read_pixels` returns one; the given image itself is turned upright."""
    with suppress(Exception):  # garbled metadata does not make good pixels bad, and Pillow raises any type over it
        ImageOps.exif_transpose(image, in_place=True)
    # A copy, because Pillow's own array is read-only, and torch warns of those.
    return np.array(_to_rgb(image))


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings, except the one of a decompression bomb, which is raised.

    Filters belong to the whole process: a caller that decodes in several threads enters this around all of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has; it fails on unknown names."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = Image.fromarray(_grey_8_bit(image))
    # As timm and torchvision do, alpha is dropped; transparent palette entries go with it, which Pillow's
    # conversion would warn of.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _grey_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.float64)
    values[~np.isfinite(values)] = 0
    low, high = _range(image, values)
    scaled = (values - low) * (255 / max(high - low, 1e-30))
    eight_bit: NDArray[np.uint8] = scaled.round().astype(np.uint8)
    return eight_bit


def _range(image: Image.Image, values: NDArray[np.float64]) -> tuple[float, float]:
    """The values of black and white: the format's own, or else the smallest usual scale that holds them all."""
    if image.mode.startswith("I;"):
        return 0, 2 ** int(getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (16,))[0]) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0, 65535  # how Pillow returns their 16 bits (PNG: before version 11)
    low, high = float(values.min()), float(values.max())
    scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    return (0, fitting[0]) if fitting else (low, high)
