"""From an image file of any format to a tensor."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddp_ft.contracts import BadSample, StorageFault
from ddp_ft.data.image import undecoded
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
from ddp_ft.errors import UserError, one_line

# Errors of the system that are about the file itself, and so are the same at each try.
_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def decode(path: Path | str) -> Tensor:
    """The image as uint8, 3 x H x W, upright (EXIF), the first frame of an animation, without its alpha.

    Grey of more than 8 bits is scaled down and never clipped. The tensor is a view of interleaved pixels, the layout
    that resizing is fastest on. Raises as `open_image`.
    """
    return undecoded.whole(open_image(path))


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
            return DeepImage(own, _upright_size(own)) if is_deep(own) else undecoded.as_tensor(as_pixels(own))
    except Exception as error:  # it may be a file that is read only now, and damaged
        raise BadSample(f"The image cannot be read: {one_line(error)}") from error


def open_image(path: Path | str) -> undecoded.Image:
    """A JPEG, and an image of more than 8 bits, as one that is decoded when parts of it are needed, which may raise as
    well; others decoded.

    Raises BadSample, "path: reason", for a damaged image; a file beyond Pillow's limit of pixels is one, and is found
    before any pixel is decoded. StorageFault if the image may be whole.
    """
    with _damage_named(path):
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  (a Path for each image takes longer)
            raise BadSample("a pipe, which might never end")
        data = _read_jpeg(path)
        header = read_header(data) if data else None
        return JpegFile(path, data, header) if header else _by_pillow(path)


def _by_pillow(path: Path | str) -> undecoded.Image:
    def read(source: Readable) -> undecoded.Image:
        with quiet_pillow(), opened(source) as image:
            if is_deep(image):
                return DeepImage(path, _upright_size(image))
            image.load()
            return undecoded.as_tensor(as_pixels(image))

    return sparing_texts(read, path)


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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        height, width, orientation = self.header
        return (width, height) if orientation >= 5 else (height, width)  # EXIF turns by 90 degrees from 5 on

    def pixels(self, shrink: int) -> Pixels:
        """The whole image, with sides of 1/shrink, rounded up, or smaller ones if it is very large; of 1 if only Pillow
        can decode it."""
        shrink = least_shrink(self.header, shrink)
        with _damage_named(self.path):
            try:
                return decode_jpeg(self.data, self.header, shrink)
            except (ValueError, OSError):  # also for small oddities: Pillow decides what is damaged
                return read_pixels(self.path)

    def within(self, value_range: ValueRange) -> "JpegFile":
        """The same: a JPEG has 8 bits."""
        return self


@dataclass(frozen=True)
class DeepImage:
    """An image of more than 8 bits, by its path or as Pillow has it, not yet scaled to 8 bits.

    `size` is (height, width), upright; `value_range` the values of black and white; None: those of its format.
    """

    source: Readable
    size: tuple[int, int]
    value_range: ValueRange | None = None

    def pixels(self, shrink: int) -> Pixels:
        """The whole image; it is never shrunk."""
        with _damage_named(self.source):
            return read_pixels(self.source, self.value_range)

    def within(self, value_range: ValueRange) -> "DeepImage":
        """The image with these values as black and white."""
        return replace(self, value_range=value_range)


@contextmanager
def _damage_named(path: Readable) -> Iterator[None]:
    try:
        yield
    except UserError:  # the limit of pixels is no number
        raise
    except Exception as error:  # a damaged file can raise almost anything: OSError, SyntaxError, struct.error...
        kind = StorageFault if is_of_the_machine(error) else BadSample
        raise kind(f"{path}: {_reason(error, path)}") from error


def _read_jpeg(path: Path | str) -> bytes:
    """The file's bytes; none if it is no JPEG."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (as above)
        if file.read(len(START)) != START:
            return b""
        file.seek(0)
        return file.readall()


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error of reading is none of the file itself, so that another try may succeed."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def _reason(error: Exception, path: Readable) -> str:
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
        return f"a TIFF has {layout}, which is not read: expected {known}"
    with path.open("rb") as stream:
        start = stream.read(16)
    if start[4:8] == b"ftyp":
        return "HEIF or video, which is not read; convert it to JPEG or PNG"
    return "not an image" if start else "the file is empty"
