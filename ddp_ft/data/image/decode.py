"""From an image file of any format to a tensor."""

import importlib.util
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddp_ft.contracts import BadSample, StorageFault
from ddp_ft.data.image import undecoded
from ddp_ft.data.image.arrays import (
    AS_PHOTOS,
    START_OF_NPY,
    STARTS_OF_TIFF,
    ArraySource,
    Misfit,
    grey_levels_of,
    opened_array,
)
from ddp_ft.data.image.jpeg import START, Header, decode_jpeg, least_shrink, read_header
from ddp_ft.data.image.pillow import (
    LIMIT_VARIABLE,
    ORIENTATION,
    Pixels,
    Readable,
    ValueRange,
    as_pixels,
    is_deep,
    opened,
    pixel_limit,
    quiet_pillow,
    read_pixels,
    sparing_texts,
    tiff_layout,
)
from ddp_ft.errors import UserError, is_of_the_machine, one_line


def decode(path: Path | str, channels: int = 3) -> Tensor:
    """The image as uint8, C x H x W, upright (EXIF), the first frame of an animation, without its alpha.

    Grey of more than 8 bits is scaled down and never clipped. The tensor is a view of interleaved pixels, the layout
    that resizing is fastest on. Raises as `open_image`, and for an image of another number of channels.
    """
    return undecoded.whole(undecoded.asked(open_image(path), channels), channels)


def decode_by_pillow(path: Path | str) -> Tensor:
    """As `decode`, but always by Pillow: what other tools see of the file."""
    with _damage_named(path):
        return undecoded.as_tensor(read_pixels(path))


def from_pillow(image: Image.Image) -> undecoded.Image:
    """A Pillow image as `open_image` returns one; the given one is not changed. BadSample for what Pillow cannot
    read."""
    try:
        with quiet_pillow():
            own = image.copy()
            return PillowFile(own, _upright_size(own)) if is_deep(own) else undecoded.as_tensor(as_pixels(own))
    except Exception as error:  # it may be a file that is read only now, and damaged
        raise BadSample(f"The image cannot be read: {one_line(error)}") from error


def open_image(path: Path | str) -> undecoded.Image:
    """A JPEG, a TIFF, an array, and an image of more than 8 bits, as one that is decoded when parts of it are needed,
    which may raise as well; others decoded.

    Raises BadSample, "path: reason", for a damaged image; a file beyond Pillow's limit of pixels is one, and is found
    before any pixel is decoded. StorageFault if the image may be whole.
    """
    with _damage_named(path):
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  (a Path for each image takes longer)
            raise BadSample("a pipe, which might never end")
        start, data = _read_jpeg(path)
        if start.startswith(START_OF_NPY):
            return ArrayFile(path)
        header = read_header(data) if data else None
        return JpegFile(path, data, header) if header else _by_pillow(path, start.startswith(STARTS_OF_TIFF))


def _by_pillow(path: Path | str, is_tiff: bool) -> undecoded.Image:
    def read(source: Readable) -> undecoded.Image:
        with quiet_pillow(), opened(source) as image:
            # What Pillow takes for colours of a TIFF may be some of its channels.
            if is_deep(image) or is_tiff:
                return PillowFile(path, _upright_size(image), is_tiff=is_tiff)
            image.load()
            return undecoded.as_tensor(as_pixels(image))

    try:
        return sparing_texts(read, path)
    except UnidentifiedImageError:
        if is_tiff and importlib.util.find_spec("tifffile"):
            return ArrayFile(path)
        raise


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width); EXIF turns by 90 degrees from 5 on."""
    with suppress(Exception):  # garbled metadata, which decoding ignores too
        if image.getexif().get(ORIENTATION, 1) in range(5, 9):
            return image.width, image.height
    return image.height, image.width


_PIXELS = re.compile(r"\((\d+) pixels\)")  # in what Pillow says of an image beyond its limit


@dataclass(frozen=True)
class JpegFile:
    """A JPEG in memory, not yet decoded."""

    path: Path | str
    data: bytes
    header: Header
    channels: int = 3

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        height, width, orientation, _ = self.header
        return (width, height) if orientation >= 5 else (height, width)  # EXIF turns by 90 degrees from 5 on

    def pixels(self, shrink: int) -> Pixels:
        """The whole image, with sides of 1/shrink, rounded up, or smaller ones if it is very large; of 1 if only Pillow
        can decode it."""
        shrink = least_shrink(self.header, shrink)
        with _damage_named(self.path):
            try:
                return decode_jpeg(self.data, self.header, shrink, self.channels)
            except (ValueError, OSError):  # also for small oddities: Pillow decides what is damaged
                return read_pixels(self.path)

    def asked(self, channels: int, value_range: ValueRange | None) -> "JpegFile":
        """The same, since a JPEG has 8 bits; as one channel if it has no colours. BadSample for more channels."""
        _check_photo(self.path, channels)
        return replace(self, channels=1) if channels == 1 and self.header.is_grey else self


@dataclass(frozen=True)
class PillowFile:
    """An image of more than 8 bits or a TIFF, by its path or as Pillow has it, not yet scaled to 8 bits.

    `size` is (height, width), upright; `value_range` the values of black and white; None: those of its format.
    """

    source: Readable
    size: tuple[int, int]
    value_range: ValueRange | None = None
    is_tiff: bool = False

    def pixels(self, shrink: int) -> Pixels:
        """The whole image; it is never shrunk."""
        with _damage_named(self.source):
            return read_pixels(self.source, self.value_range)

    def asked(self, channels: int, value_range: ValueRange | None) -> "PillowFile | ArrayFile":
        """The image with these values as black and white, as an array if it is a TIFF of many channels. BadSample for
        another image of many."""
        if self.is_tiff and channels not in AS_PHOTOS and isinstance(self.source, (Path, str)):
            return ArrayFile(self.source).asked(channels, value_range)
        _check_photo(self.source, channels)
        return replace(self, value_range=value_range)


@dataclass(frozen=True)
class ArrayFile:
    """An array of channels, not yet read: a .npy, a TIFF that Pillow does not know, or one in memory.

    `channels` is how many are asked for; None: as many as there are. `value_range` as in PillowFile.
    """

    source: ArraySource
    channels: int | None = None
    value_range: ValueRange | None = None

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the file's header. Raises BadSample."""
        with _damage_named(self.source), opened_array(self.source, self.channels) as found:
            return found.shape[:2]

    def pixels(self, shrink: int) -> Pixels:
        """The whole image, H x W x C; it is never shrunk."""
        with _damage_named(self.source):
            return grey_levels_of(self.source, self.channels, self.value_range)

    def asked(self, channels: int, value_range: ValueRange | None) -> "ArrayFile":
        """The image in so many channels, with these values as black and white."""
        return replace(self, channels=channels, value_range=value_range)


def _check_photo(source: Readable, channels: int) -> None:
    if channels not in AS_PHOTOS:
        with _damage_named(source):
            raise Misfit(3, channels)


@contextmanager
def _damage_named(path: Readable | ArraySource) -> Iterator[None]:
    """Raise what goes wrong in the block as BadSample, "path: reason"."""
    try:
        yield
    except UserError:  # the limit of pixels is no number
        raise
    except Exception as error:  # a damaged file can raise almost anything: OSError, SyntaxError, struct.error...
        kind = StorageFault if is_of_the_machine(error) else BadSample
        name = path if isinstance(path, (Path, str)) else "an image"
        raise kind(f"{name}: {_reason(error, path)}") from error


def _read_jpeg(path: Path | str) -> tuple[bytes, bytes]:
    """How a file begins, and all its bytes; of the latter none if it is no JPEG."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (as above)
        start = file.read(len(START_OF_NPY))
        if not start.startswith(START):
            return start, b""
        file.seek(0)
        return start, file.readall()


def _reason(error: Exception, path: Readable | ArraySource) -> str:
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return _too_large(error)
    if isinstance(error, UnidentifiedImageError) and isinstance(path, (Path, str)):
        return _unidentified(Path(path))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _too_large(error: Exception) -> str:
    found = _PIXELS.search(str(error))
    text = f"{found[1]} pixels, more than" if found else "more pixels than"
    return f"{text} the limit of {pixel_limit()}; {LIMIT_VARIABLE}=MEGAPIXELS in the environment moves it"


def _unidentified(path: Path) -> str:
    if layout := tiff_layout(path):
        known = "grey of 8 to 32 bits or float 32, or RGB with or without alpha of 8 or 16 bits"
        return f"a TIFF has {layout}, which is not read: expected {known}; pip install 'ddp_ft[tiff]' for others"
    with path.open("rb") as stream:
        start = stream.read(16)
    if start[4:8] == b"ftyp":
        return "HEIF or video, which is not read; convert it to JPEG or PNG"
    return "not an image" if start else "the file is empty"
