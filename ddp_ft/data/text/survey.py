"""A survey of all texts of a data set: which are damaged, empty or the same, and how long they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import BadSample, LabelledSource, Sample
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.surveyed import Surveyed, digest_of, laid_out
from ddp_ft.data.text.normal_form import normal_form
from ddp_ft.data.text.source import PAIR, TEXT, WORDS, Texts
from ddp_ft.data.text.tokenizer import TokenCounter

# Tokens are counted in at most so many texts, evenly spread: 20,000 tell a share of them to 0.7 points.
MOST_COUNTED = 20_000
_REPORTED = 1000  # texts between two reports of progress


@dataclass(kw_only=True)
class TextSurvey(Surveyed):
    """All texts of the splits, one split after the other; a pair of texts is one.

    `digests` are equal for texts of the same normal form, `exact` (uint64) for the same characters. `characters`
    (int64) and `tokens` (int64; -1 where they were not counted) are whole, as if nothing were cut off. `empty` are the
    numbers of texts without a letter, or of pairs with such a one.
    """

    exact: NDArray[np.uint64]
    characters: NDArray[np.int64]
    tokens: NDArray[np.int64]
    empty: list[int]
    but_for = "but for case, spaces and punctuation"

    def without_twins(self) -> Sequence[int]:
        """Damaged and empty ones."""
        return [*self.damaged, *self.empty]

    def are_exact(self, twins: Sequence[int]) -> bool:
        """Whether two of these have the same characters."""
        return len(np.unique(self.exact[list(twins)])) < len(twins)

    def counted(self) -> NDArray[np.int64]:
        """The numbers of the texts whose tokens were counted."""
        return np.flatnonzero(self.tokens >= 0)


def survey_texts(
    splits: Mapping[str, LabelledSource],
    counter: TokenCounter | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TextSurvey:
    """Read every text of these sets; `counter` None: tokens are not counted. `progress` is called with the number of
    texts done, and of all."""
    total = sum(map(len, splits.values()))
    found = TextSurvey(
        **laid_out(splits), exact=np.zeros(total, np.uint64), characters=np.zeros(total, np.int64),
        tokens=np.full(total, -1, np.int64), empty=[],
    )  # fmt: skip
    step = max(1, -(-total // MOST_COUNTED))
    for number in range(total):
        _look_at(found, number, counter if number % step == 0 else None)
        if (number + 1) % _REPORTED == 0 or number + 1 == total:
            progress(number + 1, total)
    return found


def _look_at(found: TextSurvey, number: int, counter: TokenCounter | None) -> None:
    try:
        texts = texts_of(open_sample(*found.place(number)))
    except BadSample as error:
        found.damaged[number] = str(error).removeprefix(f"{found.name(number)}: ")
        return
    forms = [normal_form(text) for text in texts]
    found.exact[number], found.digests[number] = map(_digest, (texts, forms))
    found.characters[number] = sum(map(len, texts))
    if not all(forms):
        found.empty.append(number)
    if counter is not None:
        found.tokens[number] = counter(texts)


def texts_of(sample: Sample) -> Texts:
    """The text of an opened sample, or both of its pair; its words with spaces between."""
    if WORDS in sample:
        return (" ".join(sample[WORDS]),)
    return tuple(sample[name] for name in (TEXT, PAIR) if name in sample)


def _digest(texts: Sequence[str]) -> int:
    return digest_of("\0".join(texts).encode("utf-8", "surrogatepass"))
