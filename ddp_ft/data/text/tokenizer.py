"""Tokenizers: from texts to the numbers of tokens. By the library tokenizers alone, which needs no transformers."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ddp_ft.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

# A batch has "tokens" (int64, B x longest) with "tokens_length"; of pairs also "second" (int64, B): the place from
# which on tokens are of the second text.
TOKENS, SECOND = "tokens", "second"
# A text is cut to so many characters for each token that is kept of it, so that one of many MB costs no more than
# others. English has 4 to 5 characters a token; more are only in runs of spaces and in words that no vocabulary has.
CHARACTERS_OF_A_TOKEN = 200


class TextTokenizer:
    """Tokenises texts, or pairs of them, to at most `length` tokens, the special ones among them.

    `content` is that of a tokenizer.json. UserError if the library tokenizers is not installed or cannot read it.
    """

    def __init__(self, content: bytes, length: int) -> None:
        self.length = length
        self._tokenizer = _read(content)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length, strategy="longest_first")

    @property
    def most(self) -> int:
        """How many characters of a text are looked at."""
        return self.length * CHARACTERS_OF_A_TOKEN

    @property
    def words(self) -> int:
        """How many tokens there are, added ones among them."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, text: str, pair: str | None = None) -> "Encoding":
        """The text's tokens, as the library describes them; of a pair, the longer one is cut first."""
        found: Encoding = self._tokenizer.encode(text[: self.most], None if pair is None else pair[: self.most])
        return found

    def many(self, texts: Sequence[tuple[str, ...]]) -> "list[Encoding]":
        """The tokens of many texts, or pairs, of at most `most` characters each; on all cores."""
        given = [each[0] if len(each) == 1 else each for each in texts]
        found: list[Encoding] = self._tokenizer.encode_batch_fast(given)
        return found


def second_of(found: "Encoding") -> int:
    """The place from which on tokens are of the second text."""
    return len(found) - sum(found.type_ids)


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
def tokenizer_of(content: bytes, length: int) -> TextTokenizer:
    """The tokenizer of that tokenizer.json, once for each process."""
    return TextTokenizer(content, length)
