"""Lists of words, or texts that are divided into them, as tokens with the places of words."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.contracts import Address, Batch, Sample
from ddp_ft.data.batch import LENGTH, stacked
from ddp_ft.data.text.packing import TextPacking
from ddp_ft.data.text.source import PAIR, TEXT, WORDS
from ddp_ft.data.text.tokenizer import EXTENTS, PLACES, TOKENS, TextTokenizer, places_of
from ddp_ft.errors import UserError

# Signs of scripts that have no spaces between words; each is a word.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# What is not seen is no word.
_UNSEEN = "\u200b-\u200f\u2060-\u2064\ufeff"


@lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    """What is a word where a text comes without them: letters with their marks, digits, what joins them; or a sign."""
    marks = "".join(chr(code) for code in range(1 << 16) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    part = rf"(?:(?![{_ALONE}])[\w{marks}])+"
    return re.compile(rf"[{_ALONE}]|{part}(?:[-'’.]{part})*|[^\w\s{_UNSEEN}]")


class WordsTransform:
    """Turns samples with "words", or a "text", into batches of tokens with the places of words."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, sample: Sample) -> Batch:
        """The sample with tokens and places; one that was packed already has them."""
        if TOKENS in sample:
            return dict(sample)
        if PAIR in sample:
            raise UserError("This model takes single texts, and here is a pair.", "Give one text.")
        rest = {name: value for name, value in sample.items() if name not in (TEXT, WORDS)}
        extents = extents_of(sample[TEXT]) if TEXT in sample else _one_space_apart(sample[WORDS])
        words = sample[WORDS] if WORDS in sample else [sample[TEXT][start:end] for start, end in extents]
        [found] = self.tokenizer.many_words([_within(words, self.tokenizer)])
        made = {TOKENS: _whole_numbers(found.ids), PLACES: _whole_numbers(places_of(found, len(words)))}
        if "target" not in sample:
            made[EXTENTS] = _whole_numbers(extents).reshape(-1, 2)
        lengths = {f"{name}{LENGTH}": torch.tensor(len(values)) for name, values in made.items()}
        return {**rest, **made, **lengths}

    def collate(self, samples: list[Batch]) -> Batch:
        """The samples as a batch, padded with 0 to the longest."""
        return stacked(samples)

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """The same: nothing is drawn for whole batches."""
        return batch


class WordsPacking(TextPacking):
    """Packs the tokens of lists of words, and their words' places; see Packing."""

    def key(self) -> str:
        """As of texts, and that they are words."""
        return hashlib.sha256(f"words {super().key()}".encode()).hexdigest()[:32]

    def abridged(self, sample: Sample) -> Sample:
        """The words."""
        return {WORDS: sample[WORDS]}

    def content(self, sample: Sample) -> bytes:
        """The words in UTF-8; a byte that UTF-8 lacks is between two."""
        return b"\xff".join(word.encode("utf-8", "surrogatepass") for word in sample[WORDS])

    def pack(self, samples: Sequence[Sample | None]) -> Mapping[str, NDArray[Any]]:
        """ "tokens" (uint16, or int32 where there are too many for that) and "places" (int32), with their lengths."""
        lists = [[] if sample is None else sample[WORDS] for sample in samples]
        found = self.tokenizer.many_words([_within(words, self.tokenizer) for words in lists])
        places = [places_of(each, len(words)) for each, words in zip(found, lists, strict=True)]
        return {
            **self.tokens(found),
            PLACES: np.concatenate([*places, np.zeros(0, np.int32)]),
            PLACES + LENGTH: np.fromiter(map(len, places), np.int32, len(places)),
        }


def extents_of(text: str) -> list[tuple[int, int]]:
    """The words of a text: from which character to which."""
    return [match.span() for match in _word().finditer(text)]


def _one_space_apart(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words are in a text that has a space between each two."""
    found, start = [], 0
    for word in words:
        found.append((start, start + len(word)))
        start += len(word) + 1
    return found


def _within(words: Sequence[str], tokenizer: TextTokenizer) -> list[str]:
    """As many of the words as may have a place, if not most of them are without a token, cut to what is looked at."""
    return [word[: tokenizer.most] for word in words[: 2 * tokenizer.length]]


def _whole_numbers(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, np.int64), device="cpu")
