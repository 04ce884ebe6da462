"""Texts without what people do not read as a difference: forms of Unicode, case, spaces, punctuation."""

import re
import sys
import unicodedata
from functools import lru_cache


def normal_form(text: str) -> str:
    """The text in Unicode's form NFKC, without differences of case, with one space for each run of spaces and
    punctuation. Of a text that has nothing else the punctuation is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_punctuation().sub(" ", folded).split()) or " ".join(folded.split())


@lru_cache(maxsize=1)
def _punctuation() -> re.Pattern[str]:
    """Characters of Unicode's categories P. Symbols, as $ or an emoji, mean something; so do the marks on letters,
    which \\w does not know."""
    all_characters = map(chr, range(sys.maxunicode + 1))
    return re.compile(f"[{re.escape(''.join(c for c in all_characters if unicodedata.category(c)[0] == 'P'))}]+")
