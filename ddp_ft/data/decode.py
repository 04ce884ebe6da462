"""A picture file to a tensor, whatever its format."""

import errno
import functools
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddp_ft.contracts import BadSample
from ddp_ft.data import picture
from ddp_ft.data.jpeg import START, Header, Pixels, decode_jpeg, read_header

_TIFF_BITS_PER_SAMPLE = 258
# What is decoded. Pillow knows more: EPS runs Ghostscript on the file, which may hold anything, and others are rare.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# Errors of the system that say something of the file itself, and so are the same at each try.
_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class StorageFault(BadSample):
    """A sample that could not be read because the machine or its disks failed; another try may well succeed."""


def decode(path: Path | str) -> Tensor:
    """The picture as uint8, 3 x H x W, upright (EXIF), the first frame of an animation, without its alpha.

    Grey of more than 8 bits is scaled down and never clipped. The tensor is a view of interleaved pixels, which
    is the layout that resizing is fastest on. Raises as `open_picture`.
    """
    return picture.whole(open_picture(path))


def decode_by_pillow(path: Path | str) -> Tensor:
    """As `decode`, whatever else there is: what other tools see of the file."""
    with _damage_named(path):
        return picture.as_tensor(_decode_by_pillow(path))


def from_pillow(image: Image.Image) -> Tensor:
    """A picture of Pillow's as `decode` gives one; it is left as it is. Raises BadSample for what Pillow cannot do."""
    try:
        with quiet_pillow():
            copy = image.copy()
            _turn_upright(copy)
            return picture.as_tensor(np.array(_to_rgb(copy)))
    except Exception as error:  # it may be a file that is read only now, and damaged
        raise BadSample(f"The picture cannot be read: {' '.join(str(error).split())}") from error


def open_picture(path: Path | str) -> picture.Image:
    """A JPEG as a picture that is decoded when parts of it are asked for, which may raise as well; all else decoded.

    Raises BadSample, "path: reason", for what is no whole picture; a file beyond Pillow's limit of pixels is one of
    them, and found out before any is decoded. StorageFault where the picture may be whole.
    """
    with _damage_named(path):
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  (a Path for each picture takes longer)
            raise BadSample("a pipe, which might never end")
        data = _read_jpeg(path)
        header = read_header(data) if data else None
        return JpegFile(path, data, header) if header else picture.as_tensor(_decode_by_pillow(path))


@dataclass(frozen=True)
class JpegFile:
    """A JPEG in memory, not yet decoded."""

    path: Path | str
    data: bytes
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        height, width, _ = self.header
        return (width, height) if self.header.is_turned else (height, width)

    def pixels(self, shrink: int) -> Pixels:
        """The whole picture, with sides of 1/shrink, rounded up; of 1 where only Pillow makes something of it."""
        with _damage_named(self.path):
            try:
                return decode_jpeg(self.data, self.header, shrink)
            except (ValueError, OSError):  # also for small oddities: Pillow has the say on what is damaged
                return _decode_by_pillow(self.path)


@contextmanager
def _damage_named(path: Path | str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file can raise almost anything: OSError, SyntaxError, struct.error...
        kind = StorageFault if _is_of_the_machine(error) else BadSample
        raise kind(f"{path}: {_reason(error, Path(path))}") from error


def _read_jpeg(path: Path | str) -> bytes:
    """The file's bytes; none if it is no JPEG."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (as above)
        if file.read(len(START)) != START:
            return b""
        file.seek(0)
        return file.readall()


def _decode_by_pillow(path: Path | str) -> Pixels:
    with quiet_pillow(), Image.open(path, formats=_formats()) as image:
        image.load()
        _turn_upright(image)
        # A copy, because the array that Pillow lends is read-only and torch warns of those.
        return np.array(_to_rgb(image))


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No Pillow warning is shown, but for the one of a decompression bomb, which is raised.

    Filters belong to the whole process: whoever decodes in several threads enters this around all of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has; it fails on names that it does not know."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # garbled metadata does not make good pixels bad, and Pillow raises all sorts over it
        return


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
    """Which values are black and white: the format's own, or else the smallest usual scale that holds them all."""
    if image.mode.startswith("I;"):
        return 0, 2 ** _bits(image) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0, 65535  # how Pillow hands on their 16 bits (PNG: before version 11)
    low, high = float(values.min()), float(values.max())
    scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    return (0, fitting[0]) if fitting else (low, high)


def _bits(image: Image.Image) -> int:
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not a picture" if path.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
