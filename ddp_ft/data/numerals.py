"""Numbers as people write them: decimal commas, marks between thousands, one unit for all; never by guessing."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SPACES = " \u00a0\u2007\u2009\u202f"
_CURRENCIES = "$€£¥₹₩₽"
# A number between a currency and a unit, which holds no digits but may hold ².
_QUANTITY = re.compile(
    rf"(?P<before>[{_CURRENCIES}]?)\s*(?P<number>[+\-\u2212]?[\d.,'\u2019{_SPACES}]*\d(?:[eE][+-]?\d+)?[.,]?)"
    rf"\s*(?P<unit>(?:[^\W\d_]|[%‰°\u2032\u2033\"{_CURRENCIES}])[^\d,;<>=]{{0,11}})?"
)
# Also (1.5) for -1.5, 1.5D+02, 1.5*10^3, 0x1F and Arabic marks.
_SIGNS_AND_DIGITS = re.compile(
    rf"0[xX][\da-fA-F]+|[(<>≤≥~≈±+\-\u2212\u2013\d.,:/%{_SPACES}{_CURRENCIES}]*\d"
    rf"(?:[\d.,:/%+\-\s()±^×*\u2212\u066b\u066c]|(?<=\d)[xXdDeE](?=[\d+\-]))*"
)


@dataclass(frozen=True)
class _Style:
    """`decimal` and `group` are the characters of the decimal mark and of the mark between thousands."""

    name: str
    decimal: str
    group: str

    def pattern(self) -> "re.Pattern[str]":
        groups = rf"|[1-9]\d{{0,2}}(?:(?P<mark>[{self.group}])\d{{3}})(?:(?P=mark)\d{{3}})*" if self.group else ""
        return re.compile(rf"[+\-]?(?:(?:\d+{groups})(?:[{self.decimal}]\d*)?|[{self.decimal}]\d+)(?:[eE][+-]?\d+)?")

    def read(self, cells: Iterable[str]) -> NDArray[np.float64]:
        """Each cell; NaN if it is written otherwise."""
        pattern, marks = self.pattern(), str.maketrans("", "", self.group)
        decimals = str.maketrans(self.decimal, "." * len(self.decimal))
        texts = [cell if pattern.fullmatch(cell) else "" for cell in cells]
        return np.array([number_in(text.translate(marks).translate(decimals)) for text in texts])


_STYLES = (
    _Style("a point before decimals, commas between thousands", ".", ","),
    _Style("a comma before decimals, points between thousands", ",", "."),
    _Style("points or commas before decimals", ".,", ""),
    _Style("a point before decimals, blanks or apostrophes between thousands", ".", f"'\u2019{_SPACES}"),
    _Style("a comma before decimals, blanks or apostrophes between thousands", ",", f"'\u2019{_SPACES}"),
)


@dataclass(frozen=True)
class Reading:
    """A way to read a column. `values` has NaN for cells that are no numbers in it; `style` and `unit` are empty for
    plain numbers."""

    values: NDArray[np.float64]
    style: str = ""
    unit: str = ""

    @property
    def count(self) -> int:
        """How many cells are numbers."""
        return int((~np.isnan(self.values)).sum())

    @property
    def has_fraction(self) -> bool:
        """Whether a number is not whole."""
        known = self.values[~np.isnan(self.values)]
        return bool((known != np.floor(known)).any())


def number_in(cell: str) -> float:
    """The cell as a number; NaN for what is no finite float32 and for 1_000, which Python would take."""
    try:
        value = math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else math.nan


def readings(cells: Sequence[str]) -> list[Reading]:
    """The ways to read the cells in which most of them are numbers; several if they lead to different numbers."""
    # Each different cell once: a table of a million rows may have ten classes.
    places = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    rows, distinct = [places[cell] for cell in cells], list(places)
    plain = Reading(np.array([number_in(cell) for cell in distinct], np.float64)[rows])
    if plain.count == len(cells):
        return [plain]
    unit, numbers = _without_unit(distinct)
    found = [plain, *(Reading(style.read(numbers)[rows], style.name, unit) for style in _STYLES)]
    most = max(each.count for each in found)
    different: list[Reading] = []
    for each in found:
        if each.count == most and not any(np.array_equal(each.values, one.values, equal_nan=True) for one in different):
            different.append(each)
    return different


def _without_unit(cells: Sequence[str]) -> tuple[str, list[str]]:
    """The unit that all cells have, and their numbers; no unit if they have different ones, or are no quantities."""
    found = [_QUANTITY.fullmatch(cell) for cell in cells]
    units = {"" if each is None else _unit(each) for each in found}
    unit = units.pop() if len(units) == 1 else ""
    numbers = [each["number"] if each and unit else cell for each, cell in zip(found, cells, strict=True)]
    return unit, [number.replace("\u2212", "-").strip(_SPACES) for number in numbers]


def _unit(quantity: "re.Match[str]") -> str:
    return f"{quantity['before']}{quantity['unit'] or ''}".strip()


def appearance(cells: Sequence[str]) -> str:
    """What most of the cells look like that are no plain numbers, in a few words; empty if they are words."""
    found = [quantity for cell in cells if (quantity := _QUANTITY.fullmatch(cell))]
    units = sorted({unit for each in found if (unit := _unit(each))})
    if 2 * len(found) > len(cells) and units:
        shown = ", ".join(units[:3]) + (", ..." if len(units) > 3 else "")
        return f"numbers with the unit {shown}" if len(units) == 1 else f"numbers with different units ({shown})"
    if 2 * len(found) > len(cells):
        return "numbers with decimal commas, marks between thousands, or too many digits"
    written = [cell for cell in cells if _SIGNS_AND_DIGITS.fullmatch(cell)]
    return "ranges, dates, bounds or other quantities" if 2 * len(written) > len(cells) else ""
