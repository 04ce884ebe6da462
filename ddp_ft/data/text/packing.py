"""Texts tokenised many at a time, by the tokenizer's own batch call, which uses all cores."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import Sample
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.text.source import PAIR, TEXT
from ddp_ft.data.text.tokenizer import SECOND, TOKENS, TextTokenizer, second_of
from ddp_ft.version import versions_of

if TYPE_CHECKING:
    from tokenizers import Encoding


class TextPacking:
    """Packs the tokens of texts, and of pairs of them; see Packing. `types` is as in TextProcessor."""

    measure = TOKENS

    def __init__(self, tokenizer: TextTokenizer, content: bytes, types: bool) -> None:
        self.tokenizer = tokenizer
        self.types = types
        self._content = content

    def key(self) -> str:
        """Of the tokenizer, the library and the code here; and of the length."""
        code = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
        rest = [versions_of(("tokenizers",)), self.tokenizer.length, self.types]
        return hashlib.sha256(b"\0".join([self._content, *code, repr(rest).encode()])).hexdigest()[:32]

    def abridged(self, sample: Sample) -> Sample:
        """The texts, as far as the tokenizer looks at them."""
        return {name: sample[name][: self.tokenizer.most] for name in (TEXT, PAIR) if name in sample}

    def content(self, sample: Sample) -> bytes:
        """The texts in UTF-8; a byte that UTF-8 lacks is between two."""
        return b"\xff".join(text.encode("utf-8", "surrogatepass") for text in sample.values())

    def pack(self, samples: Sequence[Sample | None]) -> Mapping[str, NDArray[Any]]:
        """ "tokens" (uint16, or int32 where there are too many for that) with "tokens_length", of pairs "second"."""
        nothing = dict.fromkeys(next((sample for sample in samples if sample is not None), {TEXT: ""}), "")
        texts = [nothing if sample is None else sample for sample in samples]
        found = self.tokenizer.many([tuple(each.values()) for each in texts])
        packed = self.tokens(found)
        if PAIR in nothing and self.types:
            packed[SECOND] = np.fromiter(map(second_of, found), np.int32, len(found))
        return packed

    def tokens(self, found: "Sequence[Encoding]") -> dict[str, NDArray[Any]]:
        """The tokens of all in sequence, and their numbers."""
        lengths = np.fromiter(map(len, found), np.int32, len(found))
        kind = np.uint16 if self.tokenizer.words <= 1 << 16 else np.int32
        tokens = np.fromiter(chain.from_iterable(each.ids for each in found), kind, int(lengths.sum()))
        return {TOKENS: tokens, TOKENS + LENGTH: lengths}
