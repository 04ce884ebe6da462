"""The processor of texts for language models."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch

from ddp_ft.config.schema import DataConfig, RunConfig
from ddp_ft.contracts import Address, Batch, Kept, Sample, Source, Transform
from ddp_ft.data.batch import LENGTH, stacked
from ddp_ft.data.text.packing import TextPacking
from ddp_ft.data.text.source import PAIR, TEXT, WORDS
from ddp_ft.data.text.tokenizer import SECOND, TOKENS, TextTokenizer, second_of, tokenizer_of
from ddp_ft.data.text.words import WordsPacking, WordsTransform
from ddp_ft.errors import UserError

TOKENIZER = "tokenizer.json"
# The most tokens of a text where nothing is configured: what BERT-like models take, and enough for most texts.
USUAL_LENGTH = 512


class TextTransform:
    """Turns samples with a "text", and perhaps a "text_pair", into batches of tokens."""

    def __init__(self, tokenizer: TextTokenizer, types: bool) -> None:
        self.tokenizer = tokenizer
        self.types = types

    def __call__(self, sample: Sample) -> Batch:
        """The sample with tokens in place of its texts; one that was packed already has them."""
        if TOKENS in sample:
            return dict(sample)
        rest = {name: value for name, value in sample.items() if name not in (TEXT, PAIR, WORDS)}
        found = self.tokenizer(sample[TEXT] if TEXT in sample else " ".join(sample[WORDS]), sample.get(PAIR))
        tokens = torch.tensor(found.ids, dtype=torch.int64, device="cpu")
        made = {TOKENS: tokens, f"{TOKENS}{LENGTH}": torch.tensor(len(tokens), device="cpu")}
        if PAIR in sample and self.types:
            made[SECOND] = torch.tensor(second_of(found), device="cpu")
        return {**rest, **made}

    def collate(self, samples: list[Batch]) -> Batch:
        """The samples as a batch, padded with 0 to the longest. Beside pairs the others have no second text."""
        if any(SECOND in sample for sample in samples):
            samples = [{SECOND: sample[f"{TOKENS}{LENGTH}"], **sample} for sample in samples]
        return stacked(samples)

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """The same: nothing is drawn for whole batches."""
        return batch


@dataclass(frozen=True)
class TextOnDevice:
    """Moves batches to the device, and puts the tokenizer's own `padding` where texts have ended."""

    device: torch.device
    padding: int

    def __call__(self, batch: Batch) -> Batch:
        """The batch there; some models find the end of a text by its padding."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        tokens, lengths = moved[TOKENS], moved[f"{TOKENS}{LENGTH}"]
        outside = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        return {**moved, TOKENS: tokens.masked_fill(outside, self.padding)}


@dataclass(frozen=True)
class TextProcessor:
    """Tokenises texts.

    `tokenizer` is the content of tokenizer.json, `beside` are the names and contents of the files that transformers
    wants beside it. A text has at most `length` tokens, and never more than the model's `limit`; None: any number.
    `types`: the model is told which tokens are of the second text of a pair. `of_words`: it answers for each word.
    """

    tokenizer: bytes = field(repr=False)
    beside: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    padding: int = 0
    length: int = USUAL_LENGTH
    limit: int | None = None
    types: bool = False
    of_words: bool = False
    kind = "text"

    @staticmethod
    def from_mapping(values: Mapping[str, Any], kept: Kept) -> "TextProcessor":
        """The inverse of `to_mapping`. UserError for another tokenizer than that which was described."""
        content = kept(TOKENIZER)
        if (found := hashlib.sha256(content).hexdigest()) != values["tokenizer"]:
            hint = f"Its SHA-256 is {found}; model.json has {values['tokenizer']}. Copy the whole folder again."
            raise UserError(f"{TOKENIZER} is not the one that the model was trained with.", hint)
        beside = tuple((name, kept(name)) for name in values["beside"])
        names = ("padding", "length", "limit", "types")
        of_words = bool(values.get("of_words"))
        return TextProcessor(content, beside, **{name: values[name] for name in names}, of_words=of_words)

    def to_mapping(self) -> dict[str, Any]:
        """All but the contents of files; "tokenizer" is the SHA-256 of tokenizer.json."""
        return {
            "kind": self.kind,
            "tokenizer": self._digest(),
            "beside": [name for name, _ in self.beside],
            "padding": self.padding,
            "length": self.length,
            "limit": self.limit,
            "types": self.types,
            "of_words": self.of_words,
        }

    def files(self) -> Mapping[str, bytes]:
        """The tokenizer's."""
        return {TOKENIZER: self.tokenizer, **dict(self.beside)}

    def configured(self, data: DataConfig) -> "TextProcessor":
        """data.max_length. UserError for more than the model takes."""
        if data.max_length is None:
            return replace(self, length=min(self.limit or USUAL_LENGTH, USUAL_LENGTH))
        if self.limit is not None and data.max_length > self.limit:
            hint = "Give a smaller one, or leave it out."
            raise UserError(f"data.max_length = {data.max_length}: the model takes {self.limit} tokens.", hint)
        return replace(self, length=data.max_length)

    def measure(self, data: DataConfig, source: Source) -> dict[str, Any]:
        """The hash of the tokenizer, which must be the same at later starts."""
        return {"tokenizer": self._digest()}

    def fitted(self, inputs: Mapping[str, Any]) -> "TextProcessor":
        """The same. UserError for another tokenizer than that which the run began with."""
        if inputs.get("tokenizer", self._digest()) != self._digest():
            hint = "Bring back the model's folder of then, or begin another run with --run-dir."
            raise UserError("The model's tokenizer is another one than when the run began.", hint)
        return self

    def _digest(self) -> str:
        return hashlib.sha256(self.tokenizer).hexdigest()

    def check(self, config: RunConfig, target_kind: str, device: torch.device) -> None:
        """Raise UserError for settings that only images can follow."""
        augment = config.augment
        asked = [name for name in ("mixup", "cutmix", "transform") if getattr(augment, name)]
        if asked:
            listed = " and ".join(f"augment.{name}" for name in asked)
            raise UserError(f"{listed}: this is for images, and the model takes texts.", "Leave it out.")

    def pairs(self, config: RunConfig) -> bool:
        """Never: texts are not mixed."""
        return False

    def train_transform(self, config: RunConfig) -> Transform:
        """As in evaluation."""
        return self.eval_transform()

    def eval_transform(self) -> Transform:
        """By the tokenizer, cut to the length."""
        tokenizer = tokenizer_of(self.tokenizer, self.length, self.of_words)
        return WordsTransform(tokenizer) if self.of_words else TextTransform(tokenizer, self.types)

    def packing(self) -> TextPacking:
        """Of the tokens."""
        kind = WordsPacking if self.of_words else TextPacking
        return kind(tokenizer_of(self.tokenizer, self.length, self.of_words), self.tokenizer, self.types)

    def volume(self, batch: Batch) -> tuple[int, int]:
        """Tokens."""
        return int(batch[f"{TOKENS}{LENGTH}"].sum()), batch[TOKENS].numel()

    def on_device(self, device: torch.device, channels_last: bool) -> TextOnDevice:
        """Moves them, with the tokenizer's padding."""
        return TextOnDevice(device, self.padding)

    def example(self, samples: int) -> Batch:
        """Tokens at random, always the same, of two lengths."""
        generator, words = torch.Generator("cpu").manual_seed(0), tokenizer_of(self.tokenizer, self.length).words
        lengths = [min(self.length, 16 - place % 2) for place in range(samples)]
        rows = [torch.randint(words, (length,), generator=generator, device="cpu") for length in lengths]
        return stacked([{TOKENS: row, f"{TOKENS}{LENGTH}": torch.tensor(len(row), device="cpu")} for row in rows])

    def viewed(self, views: str) -> NoReturn:
        """UserError: a text has no views."""
        raise UserError(f"--tta {views} is for images, not for texts.", "Leave it out.")

    def pixels(self, batch: Batch) -> list[Any]:
        """None."""
        return []

    def texts(self, batch: Batch) -> list[str]:
        """The tokens of each text, the special ones among them."""
        tokenizer = tokenizer_of(self.tokenizer, self.length)
        rows = zip(batch[TOKENS].tolist(), batch[f"{TOKENS}{LENGTH}"].tolist(), strict=True)
        return [" ".join(tokenizer.tokens(row[:length])) for row, length in rows]

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        """The number of tokens."""
        return "tokens", str(int(batch[f"{TOKENS}{LENGTH}"][place]))

    def shape(self) -> tuple[int, ...]:
        """Texts have no fixed size."""
        return ()
