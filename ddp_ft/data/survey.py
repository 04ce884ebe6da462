"""A survey of all images of a data set, by processes on all cores: which are damaged, duplicate, odd or small."""

import io
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ddp_ft.contracts import BadSample, LabelledSource
from ddp_ft.data.image.arrays import AS_PHOTOS, START_OF_NPY, opened_array
from ddp_ft.data.image.decode import decode
from ddp_ft.data.image.pillow import ORIENTATION, Readable, is_deep, opened, quiet_pillow, sparing_texts, without_limit
from ddp_ft.data.surveyed import Surveyed, digest_of, laid_out
from ddp_ft.distributed.environment import usable_cores

# Images that a process takes at a time, and how many such parts wait for each process: this bounds memory.
PART, WAITING = 64, 4
# Oddities of a file, by name; an image may have several.
SUFFIX, CMYK, DEEP, PALETTE, ALPHA, ANIMATED, TURNED = ODDITIES = (
    "another format than the name says", "CMYK", "more than 8 bits", "palette", "alpha", "animated", "turned by EXIF",
)  # fmt: skip
# Suffixes of formats that have another name in Pillow.
_FORMATS_OF = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), ("JPEG", "MPO")), "tif": ("TIFF",), "tiff": ("TIFF",),
    **dict.fromkeys(("pgm", "pbm", "pnm", "pfm"), ("PPM",)), "bmp": ("BMP", "DIB"), "apng": ("PNG",),
    **dict.fromkeys(("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"), ("JPEG2000",)), "avifs": ("AVIF",),
}  # fmt: skip


class Look(NamedTuple):
    """One image: why it is damaged (empty: it is not), its stored height and width, a bit for each of ODDITIES, and a
    hash of its bytes."""

    reason: str
    height: int
    width: int
    oddities: int
    digest: int


@dataclass(kw_only=True)
class Survey(Surveyed):
    """All images of the splits, whose `digests` are of their bytes.

    `sizes` (int32, N x 2) and `oddities` (uint8) are as in `Look`.
    """

    sizes: NDArray[np.int32]
    oddities: NDArray[np.uint8]

    def having(self, oddity: str) -> list[int]:
        """The numbers of the images with that oddity."""
        bit = 1 << ODDITIES.index(oddity)
        return [int(number) for number in np.flatnonzero(self.oddities & bit)]


def survey(
    splits: Mapping[str, LabelledSource], progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int | None = None, channels: int = 3,
) -> Survey:  # fmt: skip
    """Read and decode every image of these sets, whose names are paths of files.

    `progress` is called with the number of images done, and of all. `processes` None: one for each core. An image
    that cannot be taken for one of so many channels is damaged. Raises BrokenProcessPool if a decoder crashes its
    process.
    """
    total = sum(map(len, splits.values()))
    found = Survey(**laid_out(splits), sizes=np.zeros((total, 2), np.int32), oddities=np.zeros(total, np.uint8))
    parts = [range(start, min(start + PART, total)) for start in range(0, total, PART)]
    with _pool(min(processes or usable_cores(), max(1, len(parts)))) as (pool, ahead):
        names = ([found.name(number) for number in part] for part in parts)
        for part, looks in zip(parts, _in_order(pool, ((each, channels) for each in names), ahead), strict=True):
            for number, look in zip(part, looks, strict=True):
                found.sizes[number] = look.height, look.width
                found.oddities[number], found.digests[number] = look.oddities, look.digest
                if look.reason:
                    found.damaged[number] = look.reason
            progress(part.stop, total)
    return found


@contextmanager
def _pool(processes: int) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Forked processes, as the loader's workers are: a new interpreter would import torch for seconds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, processes * WAITING


def _in_order(pool: ProcessPoolExecutor, tasks: Iterator[tuple[list[str], int]], ahead: int) -> Iterator[list[Look]]:
    """As pool.map, but with a bounded number of tasks that are not done."""
    waiting: list[Future[list[Look]]] = [pool.submit(_look_at_all, *task) for task in islice(tasks, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(_look_at_all, *task) for task in islice(tasks, 1)]


def _look_at_all(names: Sequence[str], channels: int) -> list[Look]:
    with quiet_pillow():
        return [_look_at(name, channels) for name in names]


def _look_at(name: str, channels: int) -> Look:
    """Decode a file as training does, and look at its bytes and header."""
    try:
        decode(name, channels)
        data = Path(name).read_bytes()
        with without_limit():  # it was decoded already
            height, width, bits = _header_of(name, data, channels)
        return Look("", height, width, bits, digest_of(data))
    except (BadSample, OSError) as error:  # OSError: it is gone after decoding
        return Look(str(error).removeprefix(f"{name}: ") or "unreadable", 0, 0, 0, 0)


def _header_of(name: str, data: bytes, channels: int) -> tuple[int, int, int]:
    """As `_header`; of an array its size, and whether it has more than 8 bits."""
    if not data.startswith(START_OF_NPY) and channels in AS_PHOTOS:
        with suppress(UnidentifiedImageError):
            return sparing_texts(lambda source: _header(source, name), io.BytesIO(data))
    with opened_array(name, channels) as found:
        height, width, _ = found.shape
        return height, width, (found.dtype != np.uint8) << ODDITIES.index(DEEP)


def _header(source: Readable, name: str) -> tuple[int, int, int]:
    """Stored height and width, and a bit for each oddity."""
    with opened(source) as image:
        bits = sum(1 << ODDITIES.index(oddity) for oddity, is_so in _oddities(image, name) if is_so)
        return image.height, image.width, bits


def _oddities(image: Image.Image, name: str) -> Iterator[tuple[str, bool]]:
    suffix = Path(name).suffix[1:].lower()
    yield SUFFIX, bool(suffix) and image.format not in _FORMATS_OF.get(suffix, (suffix.upper(),))
    yield CMYK, image.mode == "CMYK"
    yield DEEP, is_deep(image)
    yield PALETTE, image.mode in ("P", "PA")
    yield ALPHA, image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    yield ANIMATED, image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    yield TURNED, _is_turned(image)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # garbled metadata, which decoding ignores too
        return False
