"""Fonts that have the letters of some texts."""

from collections.abc import Iterable
from functools import partial

from PIL import ImageFont


def font_for(texts: Iterable[str]) -> tuple[str, str]:
    """The file of a font with the most letters of these texts, and the letters that it lacks.

    DejaVu Sans, which comes with matplotlib, if it has all of them; else an installed one may be better.
    """
    from matplotlib import get_data_path

    wanted = {letter for text in texts for letter in text if not letter.isspace()}
    usual = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    if not (missing := _missing(wanted, usual)):
        return usual, ""
    from matplotlib.font_manager import findSystemFonts  # it may look for all fonts first, which takes seconds

    found = min([usual, *sorted(findSystemFonts())], key=partial(_rank, wanted, len(missing)))
    return found, "".join(sorted(_missing(wanted, found)))


def _rank(wanted: set[str], most: int, file: str) -> tuple[int, bool]:
    """How many of the letters a font lacks, and whether it is bold or the like; one that cannot be drawn is worse than
    the usual one."""
    try:
        ImageFont.truetype(file, 20).getlength("a")
        return len(_missing(wanted, file)), "Regular" not in file
    except Exception:  # fonts of bitmaps, damaged ones
        return most + 1, True


def _missing(wanted: set[str], file: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    return wanted - {chr(code) for code in FT2Font(file).get_charmap()}
