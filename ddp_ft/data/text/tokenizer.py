"""Tokenizers: from texts to the numbers of tokens. By the library tokenizers alone, which needs no transformers."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

# A batch has "tokens" (int64, B x longest) with "tokens_length"; of pairs also "second" (int64, B): the place from
# which on tokens are of the second text.
TOKENS, SECOND = "tokens", "second"
# Of words: "places" (int64, B x most words) with "places_length", the place of each word's first token, or NOWHERE for
# one that has none: beyond the length, or nothing but signs that tokenizers leave out. Of a text that was divided into
# words here also "extents" (int64, B x most words x 2) with "extents_length": from which character to which.
PLACES, EXTENTS = "places", "extents"
NOWHERE = -1
# A text is cut to so many characters for each token that is kept of it, so that one of many MB costs no more than
# others. English has 4 to 5 characters a token; more are only in runs of spaces and in words that no vocabulary has.
CHARACTERS_OF_A_TOKEN = 200
# To tell how much of a text is cut off, it is enough to see that it is much longer.
COUNTED_CHARACTERS_OF_A_TOKEN = 20


class TextTokenizer:
    """Tokenises texts, or pairs of them, to at most `length` tokens, the special ones among them.

    `content` is that of a tokenizer.json. `of_words`: given are lists of words. UserError if the library tokenizers is
    not installed or cannot read it.
    """

    def __init__(self, content: bytes, length: int, of_words: bool = False) -> None:
        self.length = length
        self._tokenizer = _read(content)
        if of_words:
            _begin_each_word(self._tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length, strategy="longest_first")

    @property
    def most(self) -> int:
        """How many characters of a text are looked at."""
        return self.length * CHARACTERS_OF_A_TOKEN

    @cached_property
    def words(self) -> int:
        """How many numbers of tokens there are, added ones among them, used or not."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """What the vocabulary has under these numbers."""
        return [str(self._tokenizer.id_to_token(each)) for each in ids]

    def __call__(self, text: str, pair: str | None = None) -> "Encoding":
        """The text's tokens, as the library describes them; of a pair, the longer one is cut first."""
        texts = [text[: self.most], *([] if pair is None else [pair[: self.most]])]
        found: Encoding = self._tokenizer.encode(*sound(texts))
        return found

    def many(self, texts: Sequence[tuple[str, ...]]) -> "list[Encoding]":
        """The tokens of many texts, or pairs, of at most `most` characters each; on all cores."""
        given = [each[0] if len(each) == 1 else each for each in map(tuple, map(sound, texts))]
        found: list[Encoding] = self._tokenizer.encode_batch_fast(given)
        return found

    def many_words(self, lists: Sequence[Sequence[str]]) -> "list[Encoding]":
        """The tokens of many lists of words; on all cores."""
        found: list[Encoding] = self._tokenizer.encode_batch(list(map(sound, lists)), is_pretokenized=True)
        return found


def sound(texts: Sequence[str]) -> list[str]:
    """The texts, with a question mark for what UTF-8 has not: halves of surrogate pairs, which JSON and standard input
    may bring along."""
    return [text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8") for text in texts]


def second_of(found: "Encoding") -> int:
    """The place from which on tokens are of the second text."""
    return len(found) - sum(found.type_ids)


def places_of(found: "Encoding", words: int) -> NDArray[np.int32]:
    """The place of the first token of each of so many words; NOWHERE for one that has none."""
    places, word_ids = np.full(words, NOWHERE, np.int32), found.word_ids
    for place in range(len(word_ids) - 1, -1, -1):
        if (word := word_ids[place]) is not None:
            places[word] = place
    return places


def _begin_each_word(tokenizer: Any) -> None:
    """Let those tokenizers know that each word stands after a space to which spaces are parts of tokens."""
    step = tokenizer.pre_tokenizer
    kind = type(step).__name__
    if kind == "ByteLevel":
        step.add_prefix_space = True
    elif kind == "Metaspace":
        step.prepend_scheme = "always"


class TokenCounter:
    """Counts the tokens of whole texts, special ones among them. Of a text that is far longer than `length` tokens only
    a part is counted, from which the number follows."""

    def __init__(self, content: bytes, length: int) -> None:
        self._most = length * COUNTED_CHARACTERS_OF_A_TOKEN
        self._tokenizer = _read(content)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, texts: Sequence[str]) -> int:
        """The tokens of a text, or of a pair."""
        parts = [text[: self._most] for text in texts]
        share = sum(map(len, parts)) / max(1, sum(map(len, texts)))
        return round(len(self._tokenizer.encode(*parts)) / (share or 1.0))


def _read(content: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[text]'."
        raise UserError("Texts need the library tokenizers, which is not installed.", hint) from None
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:
        hint = "Expected one that the library tokenizers, or transformers, wrote."
        raise UserError(f"tokenizer.json cannot be read: {error}.", hint) from None


@lru_cache(maxsize=4)
def tokenizer_of(content: bytes, length: int, of_words: bool = False) -> TextTokenizer:
    """The tokenizer of that tokenizer.json, once for each process."""
    return TextTokenizer(content, length, of_words)
