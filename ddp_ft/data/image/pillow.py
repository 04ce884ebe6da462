"""Images read by Pillow, in the formats of photographs. Free of torch."""

import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ddp_ft.errors import UserError
from ddp_ft.texts import plural

Pixels = NDArray[np.uint8]  # H x W x 3
ValueRange = tuple[float, float]  # the values of black and white
Readable = Path | str | io.BytesIO | Image.Image
T = TypeVar("T")
_PNG = b"\x89PNG\r\n\x1a\n"
# The most megapixels of an image, in the environment, for all commands; Pillow's own limit is 89.
LIMIT_VARIABLE = "DDP_FT_MAX_MEGAPIXELS"

ORIENTATION = 0x0112  # the EXIF tag
_TIFF_BITS_PER_SAMPLE, _TIFF_CHANNELS, _TIFF_SAMPLE_FORMAT = 258, 277, 339
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # kinds of a TIFF's numbers
# Formats that are decoded. Pillow has more: EPS runs Ghostscript on a file that may hold anything; others are rare.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def read_pixels(source: Readable, value_range: ValueRange | None = None) -> Pixels:
    """The image upright (EXIF), the first frame of an animation, without its alpha; more than 8 bits scaled down.

    `value_range`: the values of black and white for an image of more than 8 bits; None: its format's own. Raises
    Pillow's exceptions, of many types, for a damaged image.
    """

    def read(source: Readable) -> Pixels:
        with quiet_pillow(), opened(source) as image:
            if value_range is not None and is_deep(image):
                return _as_colours(scaled(_deep_values(source), value_range))
            image.load()
            return as_pixels(image)

    return sparing_texts(read, source)


def sparing_texts(read: Callable[[Readable], T], source: Readable) -> T:
    """What `read` returns; of a PNG whose texts or colour profile Pillow finds too large or damaged, read without
    them."""
    try:
        return read(source)
    except (ValueError, SyntaxError, UnidentifiedImageError):
        if isinstance(source, Image.Image):
            raise
        data = source.getvalue() if isinstance(source, io.BytesIO) else _read_png(source)
        if not data.startswith(_PNG) or (pixels := _without_texts(data)) == data:
            raise
    return read(io.BytesIO(pixels))


def _read_png(path: Path | str) -> bytes:
    """The file's bytes; empty for what is no PNG, which may be larger than the memory."""
    with open(path, "rb") as file:  # noqa: PTH123  (as elsewhere)
        start = file.read(len(_PNG))
        return start + file.read() if start == _PNG else b""


def _without_texts(png: bytes) -> bytes:
    kept, place = [_PNG], len(_PNG)
    # Then chunks of a length, a name, content and a sum.
    while place < len(png):
        length = 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[place : place + length])
        place += length
    return b"".join(kept)


def as_pixels(image: Image.Image) -> Pixels:
    """A Pillow image as `read_pixels` returns one; the given image itself is turned upright."""
    _turn_upright(image)
    # A copy, because Pillow's own array is read-only, and torch warns of those.
    return np.array(_to_rgb(image))


def _turn_upright(image: Image.Image) -> None:
    with suppress(Exception):  # garbled metadata does not make good pixels bad, and Pillow raises any type over it
        ImageOps.exif_transpose(image, in_place=True)


@contextmanager
def opened(source: Readable) -> Iterator[Image.Image]:
    """The image with its header read; a copy of one that is given."""
    if isinstance(source, Image.Image):
        yield source.copy()
        return
    with Image.open(source, formats=known_formats()) as image:
        yield image


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings, except the one of a decompression bomb, which is raised.

    Filters belong to the whole process: a caller that decodes in several threads enters this around all of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def pixel_limit() -> int:
    """The most pixels that are decoded of an image."""
    known_formats()
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


@contextmanager
def without_limit() -> Iterator[None]:
    """Read headers of any size within the block; not for threads."""
    limit = pixel_limit()
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has; it fails on unknown names. Sets the limit of pixels that is asked for;
    UserError if that is no number."""
    Image.init()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs of bad files is in the errors that it raises
    if given := os.environ.get(LIMIT_VARIABLE):
        Image.MAX_IMAGE_PIXELS = _pixels_in(given)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def tiff_layout(file: Path | str) -> str:
    """How a TIFF has its values, for one that Pillow does not know; empty for what is no TIFF."""
    with suppress(Exception), open(file, "rb") as stream:  # noqa: PTH123  (as elsewhere)
        directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(directory.next)
        directory.load(stream)
        channels, bits = directory.get(_TIFF_CHANNELS, 1), directory.get(_TIFF_BITS_PER_SAMPLE, (1,))
        kind = {_SIGNED: "signed ", _FLOAT: "float "}.get(directory.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))[0], "")
        return f"{plural(channels, 'channel')} of {kind}{bits[0]} bits"
    return ""


def _pixels_in(megapixels: str) -> int:
    with suppress(ValueError, OverflowError):
        if (pixels := round(float(megapixels) * 1e6)) > 0:
            return pixels
    raise UserError(f"{LIMIT_VARIABLE} = '{megapixels}' is not a number of megapixels.", "Example: 200")


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits for a grey or colour value."""
    return _is_deep_grey(image) or _is_deep_colour(image)


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;") or _has_signs_in_8_bits(image)


def _has_signs_in_8_bits(image: Image.Image) -> bool:
    return image.mode == "L" and _sample_format(image) == _SIGNED


def _sample_format(image: Image.Image) -> int:
    """Of a TIFF what its numbers are; unsigned for others, and where it does not matter."""
    return int(getattr(image, "tag_v2", {}).get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))[0])


def _grey_values(image: Image.Image) -> NDArray[Any]:
    """The values of a grey image, H x W. Pillow takes 32 bits as signed ones and 8 bits as unsigned ones."""
    values: NDArray[Any] = np.array(image)
    if _has_signs_in_8_bits(image):
        return values.view(np.int8)
    is_unsigned = image.mode == "I" and image.format == "TIFF" and _sample_format(image) == _UNSIGNED
    return values.view(np.uint32) if is_unsigned and values.dtype == np.int32 else values


def _is_deep_colour(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in _tiles(image))


# The order in which the four bytes of grey with alpha are read as they stand: grey, its lower 8 bits, and alpha's two.
_BYTES_OF_GREY = "RGBA"
# The parts of a file, each with a decoder, a place and the order of its bytes; only images from files have it.
_TILES = "tile"


def _tiles(image: Image.Image) -> Sequence[Any]:
    found: Sequence[Any] = getattr(image, _TILES, ())
    return found


def deep_values(source: Readable) -> NDArray[Any]:
    """`_deep_values`, also of a PNG with large texts."""
    return sparing_texts(_deep_values, source)


def _deep_values(source: Readable) -> NDArray[Any]:
    """The values of an image of more than 8 bits, upright: H x W of any number type, or uint16 H x W x 3 without alpha.

    Pillow keeps the upper 8 of a colour's 16 bits. The lower ones come from reading the file again with the bytes in
    the other order; where Pillow does not know that order, they are taken to be the upper ones.
    """
    with quiet_pillow(), opened(source) as image:
        is_colour = _is_deep_colour(image)
        orders = [(*tile[:3], _swapped(tile[3])) for tile in _tiles(image)] if is_colour else []
        is_grey = any(tile[3] == _BYTES_OF_GREY for tile in orders)
        image.load()
        _turn_upright(image)
        if not is_colour:
            return _grey_values(image)
        upper = np.array(image)[..., :3].astype(np.uint16)
        with suppress(ValueError), opened(source) as again:
            setattr(again, _TILES, orders)
            again.load()
            _turn_upright(again)
            lower = np.asarray(again)
            whole: NDArray[Any] = upper * 256 + (lower[..., 1:2] if is_grey else lower[..., :3])
            return whole
        return upper * 257


def _swapped(order: Any) -> Any:
    """Pillow's name of an order of bytes, such as RGB;16B, for the other one; it may be the first of a tuple."""
    if isinstance(order, tuple):
        return (_swapped(order[0]), *order[1:])
    name, _, bits = str(order).rpartition(";")
    if name == "LA":
        return _BYTES_OF_GREY
    native = "16L" if sys.byteorder == "little" else "16B"
    return f"{name};{'16B' if bits.replace('16N', native) == '16L' else '16L'}"


def scaled(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """The values as grey levels: the range's ends become 0 and 255, what is beyond them too, and NaN becomes black."""
    low, high = value_range
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    found: NDArray[np.uint8] = np.nan_to_num(levels, nan=0.0).round().clip(0, 255).astype(np.uint8)
    return found


def _as_colours(levels: NDArray[np.uint8]) -> Pixels:
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if _is_deep_grey(image):
        image = Image.fromarray(_grey_8_bit(image))
    # As timm and torchvision do, alpha is dropped; transparent palette entries go with it, which Pillow's
    # conversion would warn of.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _grey_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    values = _grey_values(image).astype(np.float64)
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
