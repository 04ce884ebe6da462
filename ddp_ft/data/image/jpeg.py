"""JPEG files to pixels: by libjpeg-turbo itself if simplejpeg is installed, else by Pillow, to the same bits."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddp_ft.data.image.pillow import ORIENTATION, Pixels, pixel_limit

try:
    import simplejpeg
except ImportError:  # a platform that it has no wheel for; decoding then takes half as long again
    simplejpeg = None

START = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
# How many times the limit of pixels a JPEG may have, since it shrinks while it is decoded: 530 megapixels.
_MOST_SHRUNK = 6
# Second bytes of markers: application data such as EXIF, and the start of the pixels.
_APP1, _SCAN = 0xE1, 0xDA
# By EXIF's numbers: what turns the stored pixels upright.
_UPRIGHT = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


class Header(NamedTuple):
    """The stored size of a JPEG, its EXIF orientation, and whether it has no colours."""

    height: int
    width: int
    orientation: int
    is_grey: bool = False


def read_header(data: bytes) -> Header | None:
    """The header; None for what only Pillow reads: CMYK, or no JPEG after all; and for what it refuses, since it has
    too many pixels even for one that is shrunk while it is decoded."""
    try:
        if simplejpeg is None:
            with _opened(data) as image:
                height, width, colours = image.height, image.width, {"L": "Gray"}.get(image.mode, image.mode)
        else:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB", "Gray") or height * width > _MOST_SHRUNK * pixel_limit():
            return None
        is_large = height * width > pixel_limit()
        orientation = _orientation(data, is_large) if _has_metadata(data) else 1
    except Exception:  # decoding by Pillow will meet it again, and name it
        return None
    return Header(height, width, orientation, colours == "Gray")


def least_shrink(header: Header, shrink: int) -> int:
    """The power of 2 up to 8 by which the sides shrink, `shrink` or more, so that no more pixels are decoded than
    allowed."""
    while shrink < 8 and header.height * header.width > pixel_limit() * shrink**2:
        shrink *= 2
    return shrink


def _has_metadata(data: bytes) -> bool:
    """Whether there is a segment of EXIF or XMP. Reading it by Pillow takes longer than all else here.

    The segments are walked, because a search through the whole file took a tenth of a millisecond.
    """
    place = 2
    while data[place] == 0xFF and data[place + 1] not in (_APP1, 0xFF):
        if data[place + 1] == _SCAN:
            return False
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return True  # also for what is no chain of segments: Pillow reads it


def _orientation(data: bytes, is_large: bool) -> int:
    if is_large:  # Pillow would refuse to open it
        exif, start = Image.Exif(), data.find(_EXIF)
        exif.load(data[start:] if start >= 0 else b"")
        found = exif.get(ORIENTATION, 1)
    else:
        with _opened(data) as image:
            found = image.getexif().get(ORIENTATION, 1)
    return found if found in _UPRIGHT else 1


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=("JPEG", "MPO"))


def decode_jpeg(data: bytes, header: Header, shrink: int, channels: int = 3) -> Pixels:
    """The image upright, with sides of 1/shrink of the stored ones, rounded up; shrink is 1, 2, 4 or 8. One without
    colours may have 1 channel, to the same values.

    Shrinking is done in the frequency domain, where it saves time. Raises ValueError or OSError for damaged data.
    """
    stored: Pixels
    if simplejpeg is None:
        with _opened(data) as image:
            image.draft(None, (image.width // shrink, image.height // shrink))
            stored = np.array(image.convert("RGB" if channels == 3 else "L")).reshape(image.height, image.width, -1)
    else:
        height, width = -(-header.height // shrink), -(-header.width // shrink)
        kind = "RGB" if channels == 3 else "GRAY"
        stored = simplejpeg.decode_jpeg(data, kind, min_height=height, min_width=width, min_factor=shrink)
    turn = _UPRIGHT.get(header.orientation)
    return stored if turn is None else turn(stored)
