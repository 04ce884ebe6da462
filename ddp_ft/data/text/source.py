"""Texts in memory as a source: those of a table."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import Batch, Sample
from ddp_ft.data.cells import list_of_cell
from ddp_ft.data.derived import labels_of
from ddp_ft.data.text.read import encoded
from ddp_ft.errors import printable

# A sample's texts: one, or a pair.
Texts = tuple[str, ...]
TEXT, PAIR, WORDS = "text", "text_pair", "words"
# Characters of a text in its name.
_SHOWN = 40


class TextSource:
    """Texts, or pairs of them, by their names."""

    kind = TEXT

    def __init__(self, names: Sequence[str], texts: Sequence[Texts]) -> None:
        assert len(names) == len(texts)
        self.names = names
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, index: int) -> str:
        """The text's name."""
        return self.names[index]

    def open(self, index: int) -> Sample:
        """The "text" and, of a pair, "text_pair"."""
        return dict(zip((TEXT, PAIR), self.texts[index], strict=False))

    def read(self, index: int) -> Batch:
        """The same as bytes of UTF-8."""
        return encoded(self.open(index))


class LabelledTexts(TextSource):
    """Texts with targets; see LabelledSource."""

    def __init__(
        self,
        names: Sequence[str],
        texts: Sequence[Texts],
        targets: NDArray[Any],
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        assert len(texts) == len(targets) and (weights is None or len(weights) == len(texts))
        super().__init__(names, texts)
        self.targets = targets
        self.weights = weights

    def open(self, index: int) -> Sample:
        """As `TextSource.open`, with "target", and "weight" (float32, a scalar) if there are any."""
        return {**self.unlabelled(index), **labels_of(self, index)}

    def unlabelled(self, index: int) -> Sample:
        """As `TextSource.open`."""
        return super().open(index)


class LabelledWords(LabelledTexts):
    """Lists of words, each in one text, with a target for each word; see LabelledSource."""

    def unlabelled(self, index: int) -> Sample:
        """The "words"."""
        return {WORDS: list_of_cell(self.texts[index][0])}


def name_of(texts: Texts) -> str:
    """A name for the texts, the same wherever they are: 16 digits of their hash, and how they begin."""
    digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    start = " ".join(texts[0][: 4 * _SHOWN].split())
    return f"{digest} {printable(start[:_SHOWN])}".rstrip()
