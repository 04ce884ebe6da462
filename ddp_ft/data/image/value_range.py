"""Which values of images of more than 8 bits become black and white: those that a sample of the set has."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from ddp_ft.contracts import Source
from ddp_ft.data.image.arrays import AS_PHOTOS, NPY, opened_array
from ddp_ft.data.image.pillow import Readable, ValueRange, deep_values, is_deep, opened, quiet_pillow, sparing_texts
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError

# How many headers are read, evenly spread over the set, and of how many images of more than 8 bits all values.
_HEADERS, _IMAGES = 256, 32
# Formats of 8 bits, which are not opened.
_SHALLOW = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp")
# The largest values of whole numbers of 8 to 16 bits, and the usual ones of others.
_WHOLE, _FRACTIONS = tuple(float(2**bits - 1) for bits in range(8, 17)), (1.0, 255.0, 65535.0)
FULL = (0.0, _WHOLE[-1])
# The share of values on each side that may be outliers, such as dead pixels: 100 of a megapixel.
_OUTLIERS = 1e-4
_QUANTILES = (0.0, _OUTLIERS, 0.01, 0.99, 1 - _OUTLIERS, 1.0)
# A usual scale of which the values fill less than this is not taken: fewer than 64 grey levels would remain.
LEAST_USE = 1 / 4
# What stands for no value, as satellites and elevation maps have it; also what is as large as a float32 can be.
_NO_VALUE, _NO_NUMBER = (-999.0, -9999.0, -99999.0, -32767.0, -32768.0), 1e30


@dataclass(frozen=True)
class Values:
    """The least and the largest value in `images` of more than 8 bits: of all values, without outliers, and of the
    middle 98 %; and whether all are whole numbers of up to 16 bits."""

    images: int
    ends: ValueRange
    usual_ends: ValueRange
    middle: ValueRange
    is_whole: bool


def spread(source: Source, most: int) -> list[int]:
    """At most so many indices of the set, evenly spread and always the same."""
    count = min(most, len(source))
    return [place * len(source) // count for place in range(count)]


def sample_values(source: Source, channels: int = 3) -> Values | None:
    """The values in a sample of the set, always the same one; None if none of it has more than 8 bits.

    What is no file, or cannot be read, is skipped.
    """
    names = [name for name in map(source.name, spread(source, _HEADERS)) if not name.lower().endswith(_SHALLOW)]
    with quiet_pillow(), ThreadPoolExecutor(usable_cores()) as pool:
        are_deep = pool.map(partial(_is_deep, channels=channels), names)
        deep = [name for name, is_so in zip(names, are_deep, strict=True) if is_so]
        chosen = [deep[place * len(deep) // min(_IMAGES, len(deep))] for place in range(min(_IMAGES, len(deep)))]
        found = [each for each in pool.map(partial(_look, channels=channels), chosen) if each is not None]
    if not found:
        return None
    lowest, highest = np.min([each[0] for each in found], 0), np.max([each[0] for each in found], 0)
    ends, usual, middle = ((float(lowest[place]), float(highest[-1 - place])) for place in range(3))
    return Values(len(found), ends, usual, middle, all(is_whole for _, is_whole in found))


def _is_deep(name: str, channels: int) -> bool:
    try:
        if not os.path.isfile(name):  # noqa: PTH113  (a pipe might never end)
            return False
        if not _is_array(name, channels):
            with suppress(UnidentifiedImageError):  # a TIFF of kinds that Pillow does not know is an array too
                return sparing_texts(_is_deep_file, name)
        with opened_array(name, channels) as found:
            return found.dtype != np.uint8
    except Exception:  # training will meet it, and report what is wrong
        return False


def _is_array(name: str, channels: int) -> bool:
    return name.lower().endswith(NPY) or channels not in AS_PHOTOS


def _is_deep_file(source: Readable) -> bool:
    with opened(source) as image:
        return is_deep(image)


def _values_of(name: str, channels: int) -> NDArray[Any]:
    if not _is_array(name, channels):
        with suppress(UnidentifiedImageError):
            return deep_values(name)
    with opened_array(name, channels) as found:
        return found.load()


def _look(name: str, channels: int) -> tuple[NDArray[np.float64], bool] | None:
    """The values at the _QUANTILES; and whether all are whole numbers of 16 bits."""
    try:
        values = _values_of(name, channels)
    except Exception:
        return None
    finite = _without_fill(values[np.isfinite(values)])
    if not finite.size:
        return None
    found = np.quantile(finite, _QUANTILES).astype(np.float64)
    return found, bool(np.issubdtype(values.dtype, np.integer) and found[0] >= 0 and found[-1] <= FULL[1])


def _without_fill(values: NDArray[Any]) -> NDArray[Any]:
    """The values without those that stand for no value and lie further from the others than these from each other."""
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.abs(values) < _NO_NUMBER]
    lowest = values.min(initial=0)
    rest = values[values > lowest]
    is_fill = float(lowest) in _NO_VALUE and rest.size and float(rest.min()) - float(lowest) > float(np.ptp(rest))
    return rest if is_fill else values


def range_of(values: Values) -> ValueRange | None:
    """The values of black and white for a set with such values; None if all are equal.

    From 0 to the smallest usual scale that holds them all (for whole numbers 2^8 - 1 to 2^16 - 1; 1, 255 or 65535), but
    for outliers that would make it four times as large; the ends of the values themselves where they are negative,
    larger, or fill less than a quarter of such a scale.
    """
    if values.ends[0] == values.ends[1]:
        return None
    with_all, without = _scale(values.ends, values.is_whole), _scale(values.usual_ends, values.is_whole)
    width, usual_width = with_all[1] - with_all[0], without[1] - without[0]
    return without if 0 < usual_width <= width / 4 else with_all


def levels_used(values: Values, value_range: ValueRange) -> float:
    """How many of the 256 grey levels lie between the ends of the middle 98 % of the values."""
    dark, bright = np.interp(values.middle, value_range, (0.0, 255.0))
    return float(bright - dark) + 1


def parse_range(given: Sequence[float] | None) -> ValueRange | None:
    """The values of black and white in data.range; None for auto. UserError unless it has two numbers, rising."""
    if given is None:
        return None
    if len(given) != 2 or not given[0] < given[1]:
        text = ",".join(f"{each:g}" for each in given)
        raise UserError(f"data.range = {text} is not LOW,HIGH.", "Example: data.range=0,4095 for 12 bits; or auto.")
    return given[0], given[1]


def measure(given: Sequence[float] | None, source: Source, channels: int = 3) -> dict[str, Any]:
    """What the preprocessing has to know of a set's values: "value_range", and a "note" on it for the start.

    Empty without images of more than 8 bits; without a range where the format's own is right, as for 16 bits in full.
    """
    values, known = sample_values(source, channels), parse_range(given)
    if values is None:
        return {} if known is None else {"value_range": list(known)}
    found = known or range_of(values)
    how = "data.range" if known else f"measured on {values.images} of them; data.range can change that"
    if found is None or (known is None and values.is_whole and found == FULL):
        return {"note": f"Images have more than 8 bits: black is 0 and white {FULL[1]:g} ({how})."} if found else {}
    note = f"Images have more than 8 bits: black is {found[0]:g} and white {found[1]:g} ({how})."
    return {"value_range": list(found), "note": note}


def _scale(ends: ValueRange, is_whole: bool) -> ValueRange:
    low, high = ends
    usual = next((scale for scale in (_WHOLE if is_whole else _FRACTIONS) if high <= scale), math.inf)
    if low >= 0 and high - low >= LEAST_USE * usual:
        return 0.0, usual
    return low, high
