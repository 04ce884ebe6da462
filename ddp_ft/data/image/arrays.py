"""Images of any number of channels: NumPy's .npy files, and TIFFs of several samples a pixel or several pages. Free of
torch."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.image.pillow import LIMIT_VARIABLE, ValueRange, pixel_limit, scaled

NPY = ".npy"
STARTS_OF_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
START_OF_NPY = b"\x93NUMPY"
# Numbers of channels that become each other: grey as colours, and colours as grey.
AS_PHOTOS = (1, 3)
# What a file, or pixels in memory, are read from.
ArraySource = Path | str | NDArray[Any]


class Found(NamedTuple):
    """An array whose header is read: (height, width, channels), its type, and what reads it as such."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    load: Callable[[], NDArray[Any]]


def fits(found: int, channels: int | None) -> bool:
    """Whether an image of so many channels is taken for one of `channels`; None: any number is."""
    return channels is None or found == channels or (found in AS_PHOTOS and channels in AS_PHOTOS)


class Misfit(ValueError):
    """An image of so many channels where others are expected."""

    def __init__(self, found: int, channels: int) -> None:
        these = f"{found} channel{'s' if found > 1 else ''} where {channels} {'are' if channels > 1 else 'is'} expected"
        super().__init__(f"{these} (training with data.channels={found} makes a model for such images)")
        self.found = found


@contextmanager
def opened_array(source: ArraySource, channels: int | None) -> Iterator[Found]:
    """The array of a .npy, a TIFF or the memory, for a model of so many channels. ValueError if it cannot be one."""
    if isinstance(source, np.ndarray) or _is_npy(source):
        values = source if isinstance(source, np.ndarray) else np.load(source, mmap_mode="r", allow_pickle=False)
        yield _checked(_of_array(values, channels), channels)
        return
    with _tifffile().TiffFile(source) as file:
        yield _checked(_of_pages(file.pages, channels), channels)


def grey_levels_of(source: ArraySource, channels: int | None, value_range: ValueRange | None) -> NDArray[np.uint8]:
    """H x W x C, of more than 8 bits scaled so that the range's ends are 0 and 255; None: the range of its type."""
    with opened_array(source, channels) as found:
        values = found.load()
    if values.dtype == np.uint8:
        return np.array(values)  # a copy: the file's memory is read-only, and torch warns of that
    return scaled(values, value_range or _range_of_type(values))


def shown(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H x W x C as an image of three channels to look at: the first three, or the first as grey."""
    chosen = levels[..., :3] if levels.shape[2] >= 3 else np.repeat(levels[..., :1], 3, axis=2)
    return np.ascontiguousarray(chosen)


def look_at(file: str) -> NDArray[np.uint8]:
    """An array to look at, as `shown`; of more than 8 bits between its own least and largest value."""
    with opened_array(file, None) as found:
        values = found.load()
    if values.dtype != np.uint8:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        values = scaled(values, (low, max(high, low + 1e-30)))
    return shown(values)


def unused_channels(file: str) -> int:
    """How many channels a TIFF has, if it is read as a photo and has more than that: alpha does not count."""
    with suppress(Exception), open(file, "rb") as stream:  # noqa: PTH123  (as elsewhere)
        if not stream.read(4).startswith(STARTS_OF_TIFF):
            return 0
        with _tifffile().TiffFile(file) as tiff:
            first, found = tiff.pages[0], _of_pages(tiff.pages, None)
            is_several = not any(first.extrasamples) and found.shape[2] > max(AS_PHOTOS)
            return found.shape[2] if is_several else 0
    return 0


def _is_npy(path: Path | str) -> bool:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (a Path for each takes longer)
        return file.read(len(START_OF_NPY)) == START_OF_NPY


def _checked(found: Found, channels: int | None) -> Found:
    height, width, count = found.shape
    if found.dtype.kind not in "uif":
        raise ValueError(f"values of {found.dtype}, which is not read: expected uint8, uint16 or float32")
    if not height * width * count:
        raise ValueError("no pixels")
    if height * width > pixel_limit():
        limit = f"the limit of {pixel_limit()}; {LIMIT_VARIABLE}=MEGAPIXELS in the environment moves it"
        raise ValueError(f"{height * width} pixels, more than {limit}")
    if channels is not None and not fits(count, channels):
        raise Misfit(count, channels)
    return found


def _of_array(values: NDArray[Any], channels: int | None) -> Found:
    """Two dimensions are one channel. Of three the last are the channels if their number fits, else the first; where
    neither does, or any would, the fewer ones."""
    if values.ndim not in (2, 3):
        raise ValueError(f"{values.ndim} dimensions; expected H x W, H x W x channels or channels x H x W")
    laid_out = values[..., None] if values.ndim == 2 else values
    if values.ndim == 3 and _is_first(values.shape, channels):
        laid_out = np.moveaxis(values, 0, 2)
    height, width, count = laid_out.shape
    return Found((height, width, count), values.dtype, lambda: np.asarray(laid_out))


def _is_first(shape: Sequence[int], channels: int | None) -> bool:
    first, _, last = shape
    if channels is not None:
        for is_fitting in (channels.__eq__, lambda count: fits(count, channels)):
            if is_fitting(last) or is_fitting(first):
                return not is_fitting(last)
    return first < last


def _of_pages(pages: Any, channels: int | None) -> Found:
    """The first page, if the number of its samples fits; else all pages of its size and type, one after the other."""
    if not pages:
        raise ValueError("a TIFF without an image; it may be cut off")
    first = pages[0]
    whole = [page for page in pages if not (page.is_reduced or page.is_mask)] or [first]
    alike = [page for page in whole if page.shape == first.shape and page.dtype == first.dtype]
    height, width, samples = _shape_of(first)
    chosen = [first] if fits(samples, channels) and (channels is not None or len(alike) == 1) else alike
    shape = height, width, samples * len(chosen)
    return Found(shape, first.dtype, lambda: np.concatenate([_values_of(page) for page in chosen], axis=2))


def _shape_of(page: Any) -> tuple[int, int, int]:
    shape = tuple(map(int, page.shape))
    if page.axes == "YX":
        return shape[0], shape[1], 1
    if page.axes in ("YXS", "SYX"):
        return (shape[0], shape[1], shape[2]) if page.axes == "YXS" else (shape[1], shape[2], shape[0])
    raise ValueError(f"a page of a TIFF has the dimensions {page.axes}, which are not read")


def _values_of(page: Any) -> NDArray[Any]:
    values: NDArray[Any] = page.asarray()
    return values[..., None] if page.axes == "YX" else np.moveaxis(values, 0, 2) if page.axes == "SYX" else values


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise ValueError("a TIFF of several channels needs tifffile: pip install 'ddp_ft[tiff]'") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # of a damaged file, what is raised says enough
    return tifffile


def _range_of_type(values: NDArray[Any]) -> ValueRange:
    """The values of black and white where none were measured: all of unsigned numbers; of others the smallest usual
    scale that holds them all, or their own ends."""
    if values.dtype.kind == "u":
        return 0.0, float(np.iinfo(values.dtype).max)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    fitting = [scale for scale in (1.0, 255.0, 65535.0) if low >= 0 and high <= scale]
    return (0.0, fitting[0]) if fitting else (low, max(high, low + 1e-30))
