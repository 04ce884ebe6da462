"""Tokenizers: from texts to the numbers of tokens. By the library tokenizers alone, which needs no transformers."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ddp_ft.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

# A text is cut to so many characters for each token that is kept of it, so that one of many MB costs no more than
# others. English has 4 to 5 characters a token; more are only in runs of spaces and in words that no vocabulary has.
CHARACTERS_OF_A_TOKEN = 200
# To tell how much of a text is cut off, it is enough to see that it is much longer.
COUNTED_CHARACTERS_OF_A_TOKEN = 20


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
    def words(self) -> int:
        """How many tokens there are, added ones among them."""
        return int(self._tokenizer.get_vocab_size())

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """What the vocabulary has under these numbers."""
        return [str(self._tokenizer.id_to_token(each)) for each in ids]

    def __call__(self, text: str, pair: str | None = None) -> "Encoding":
        """The text's tokens, as the library describes them; of a pair, the longer one is cut first."""
        most = self.length * CHARACTERS_OF_A_TOKEN
        found: Encoding = self._tokenizer.encode(text[:most], None if pair is None else pair[:most])
        return found


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
def tokenizer_of(content: bytes, length: int) -> TextTokenizer:
    """The tokenizer of that tokenizer.json, once for each process."""
    return TextTokenizer(content, length)
