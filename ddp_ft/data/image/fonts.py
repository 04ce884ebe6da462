"""Fonts for names in any script: matplotlib's own, and installed ones for the letters that it lacks.

A letter that no installed font has is drawn as its code point (\\u732b), since a box would say nothing.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from ddp_ft.errors import printable


def font_files(texts: Iterable[str]) -> list[str]:
    """The default font, and as few installed ones as have the letters of these texts that it lacks."""
    files = [_default()]
    missing = {ord(letter) for text in texts for letter in printable(text)} - _letters(_default())
    while missing:
        best = max(_installed(), key=lambda file: len(missing & _letters(file)), default=_default())
        if not missing & _letters(best):
            break
        files.append(best)
        missing -= _letters(best)
    return files


def drawable(text: str, files: Sequence[str]) -> str:
    """The text in one line, with code points for the letters that none of these fonts has."""
    return "".join(
        each if any(ord(each) in _letters(file) for file in files) else _code_point(each) for each in printable(text)
    )


def families(files: Sequence[str]) -> list[str]:
    """These fonts as matplotlib calls them."""
    from matplotlib.font_manager import FontProperties, fontManager

    for file in files[1:]:  # matplotlib keeps its list of fonts, which may be older than the file
        fontManager.addfont(file)
    return [FontProperties(fname=file).get_name() for file in files]


class Pen:
    """Measures and draws lines of text, each letter in the first of these fonts that has it."""

    def __init__(self, files: Sequence[str], size: int) -> None:
        from PIL import ImageFont

        self._files = list(files)
        self._fonts = [ImageFont.truetype(file, size) for file in files]
        self._widths: dict[str, float] = {}

    def length(self, text: str) -> float:
        """The width of a line in pixels, but for what neighbours move together."""
        return sum(map(self._width, text))

    def _width(self, letter: str) -> float:
        if letter not in self._widths:
            self._widths[letter] = float(self._fonts[self._font_of(letter)].getlength(letter))
        return self._widths[letter]

    def write(self, draw: Any, place: tuple[float, float], text: str) -> None:
        """Draw a line whose left upper corner is at `place`, with Pillow's `draw`."""
        (left, top), base = place, self._fonts[0].getmetrics()[0]
        for part, font in self._parts(text):
            draw.text((left, top + base), part, fill="black", font=font, anchor="ls")
            left += font.getlength(part)

    def _parts(self, text: str) -> list[tuple[str, Any]]:
        return [("".join(part), self._fonts[number]) for number, part in groupby(text, key=self._font_of)]

    def _font_of(self, letter: str) -> int:
        return next((number for number, file in enumerate(self._files) if ord(letter) in _letters(file)), 0)


def _code_point(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@cache
def _default() -> str:
    """DejaVu, which comes with matplotlib and has far more letters than Pillow's own font."""
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@cache
def _installed() -> tuple[str, ...]:
    """The system's font files, fonts of ordinary weight first."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts(), key=lambda file: ("Regular" not in file, file)))


@cache
def _letters(file: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except Exception:  # FreeType refuses some files, such as fonts of pixels alone
        return frozenset()
