"""Findings about the texts, from a survey of all of them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LabelledSource, Processor
from ddp_ft.data.text.processor import USUAL_LENGTH, TextProcessor
from ddp_ft.data.text.survey import TextSurvey, survey_texts
from ddp_ft.data.text.tokenizer import TokenCounter
from ddp_ft.diagnostics.examination import Progress
from ddp_ft.diagnostics.finding import NOTE, OK, WARNING, Finding
from ddp_ft.diagnostics.samples import doubled, paths_of, readable
from ddp_ft.texts import percent, plural

# From this share of all tokens on, what is cut off is worth more than a note.
MUCH_LOST = 0.1
# A longer limit is advised that would leave this share of the texts whole.
NEARLY_ALL = 0.99
# Characters of an English word's part that is a token; other scripts have fewer.
USUAL_CHARACTERS = 4
_CUT = Finding("cut texts", NOTE, "", unit="share")
Numbers = NDArray[np.int64]


def examine_texts(
    sources: Mapping[str, LabelledSource], data: DataConfig, processor: Processor | None, report: Progress
) -> Iterator[Finding]:
    """All findings of these sets, which are read for it; tokens are those of the model's `processor`, if there is
    one."""
    known = processor if isinstance(processor, TextProcessor) else None
    counter = None if known is None else TokenCounter(known.tokenizer, known.length)
    found = survey_texts(sources, counter, report or (lambda done, total: None))
    yield readable(found, data.on_error == "skip", "text")
    yield empty(found)
    yield from doubled(found, "text")
    yield from sized(found, data.max_length or USUAL_LENGTH) if known is None else cut_off(found, known)


def empty(found: TextSurvey) -> Finding:
    """Texts without a letter."""
    text = f"{plural(len(found.empty), 'text')} without a letter" if found.empty else "none"
    remedy = "Remove them, or find out why they are empty: nothing can be learned from them."
    paths = paths_of(found, found.empty)
    return Finding("empty", WARNING, text, remedy, float(len(found.empty)), "texts", paths).unless(not found.empty)


def sized(found: TextSurvey, length: int) -> Iterator[Finding]:
    """Lengths in characters, where no model is known; `length` in tokens."""
    sound = np.setdiff1d(np.arange(len(found)), list(found.damaged))
    if not len(sound):
        return
    sizes = found.characters[sound]
    yield _lengths(sizes, "characters")
    long = sound[sizes > USUAL_CHARACTERS * length]
    text = f"{percent(len(long) / len(sound), 1)} of the texts are probably longer than {length} tokens"
    text += f" (by {USUAL_CHARACTERS} characters a token, as in English)"
    remedy = "What is longer is cut off. With --model doctor counts the model's own tokens."
    yield _cut(found, long, replace(_CUT, text=text, remedy=remedy, value=len(long) / len(sound)))


def cut_off(found: TextSurvey, processor: TextProcessor) -> Iterator[Finding]:
    """Lengths in the model's tokens, and what is lost of texts that are longer than its limit."""
    counted = found.counted()
    if not len(counted):
        return
    tokens, length = found.tokens[counted], processor.length
    yield _lengths(tokens, "tokens")
    long = counted[tokens > length]
    share, lost = len(long) / len(counted), float((tokens - length).clip(0).sum() / max(1, tokens.sum()))
    of = "" if len(counted) == len(found) else f" of {plural(len(counted), 'sampled text')}"
    text = f"{percent(share, 1)}{of or ' of the texts'} are longer than {length} tokens: "
    text += f"{percent(lost, 1)} of all tokens are cut off"
    verdict = WARNING if lost >= MUCH_LOST else NOTE
    remedy = _longer(tokens, processor)
    yield _cut(found, long, replace(_CUT, verdict=verdict, text=text, remedy=remedy, value=share))


def _cut(found: TextSurvey, long: Numbers, what: Finding) -> Finding:
    """`what` with the names of the long texts; that there are none, if so."""
    what = what if len(long) else replace(what, text="none")
    return replace(what, paths=paths_of(found, long.tolist())).unless(not len(long))


def _longer(tokens: Numbers, processor: TextProcessor) -> str:
    """What to do about texts that are cut."""
    enough = int(np.quantile(tokens, NEARLY_ALL, method="higher"))
    most = min(enough, processor.limit) if processor.limit else enough
    if most <= processor.length:
        return (
            f"The model takes {processor.limit} tokens. Cut long texts into parts, let what decides come first, or "
            "choose a model of longer texts."
        )
    whole = percent(float((tokens <= most).mean()), 0)
    return f"--set data.max_length={most} leaves {whole} of the texts whole; longer texts take more time and memory."


def _lengths(sizes: Numbers, unit: str) -> Finding:
    low, middle, many, high = (int(np.quantile(sizes, at, method="higher")) for at in (0, 0.5, 0.95, 1))
    text = f"{low:,} to {high:,} {unit}; half of the texts have up to {middle:,}, 95 % up to {many:,}"
    return Finding("lengths", OK, text, value=float(middle), unit=unit)
