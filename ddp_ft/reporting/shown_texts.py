"""Texts in a report: the words on which an answer hangs, and what is around them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ddp_ft.contracts import LabelledSource, Sample
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.packed_source import as_given
from ddp_ft.data.text.survey import texts_of
from ddp_ft.errors import printable
from ddp_ft.inference.trained_model import Trained, load_trained
from ddp_ft.inference.word_weights import Word, words_of
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.tasks.scored.base import ScoredSet

# A text of more words than this is shortened: to how it begins, and the words of the largest weights with some around.
MOST_WORDS = 80
_BEGINNING, _HEAVIEST, _AROUND = 12, 5, 6
# Words of less than this share of the largest weight are not coloured.
_LEAST_SHARE = 0.2
# Characters that join letters or emoji, and are not printable by themselves.
_JOINERS = "\u200c\u200d"
_GAP = " … "


def shown_texts(
    facts: RunFacts, scored_set: ScoredSet, indices: Sequence[int], source: LabelledSource, explains: bool
) -> list[dict[str, Any]]:
    """The template's values for these samples; `explains`: with weights of words."""
    model = _model(facts.path / "best", (facts.path / "best" / "model.json").stat().st_mtime_ns)
    shown = []
    for index in indices:
        sample, path = open_sample(as_given(source), index), printable(source.name(index))
        about = {"caption": scored_set.caption(index), "path": path, "file": Path(path).name}
        shown.append({"texts": pieces_of(sample, shown_words(model, sample, explains)), **about})
    return shown


def shown_words(model: Trained, sample: Sample, explains: bool) -> list[list[Word]]:
    """The words, without weights where these cannot be computed: memory is short, or an operation has no gradient."""
    try:
        return words_of(model, sample, explains)
    except (RuntimeError, ValueError):
        return words_of(model, sample, weighs=False)


@lru_cache(maxsize=1)
def _model(folder: Path, _changed: int) -> Trained:
    return load_trained(folder, torch.device("cpu"))


def pieces_of(sample: Sample, words: Sequence[Sequence[Word]]) -> list[list[tuple[str, float]]]:
    """Each text of the sample in pieces, with a share of -1 to 1 of the largest weight; 0: no colour."""
    largest = max((abs(word.weight) for each in words for word in each), default=0.0) or 1.0
    return [_pieces(text, each, largest) for text, each in zip(texts_of(sample), words, strict=True)]


def _pieces(text: str, words: Sequence[Word], largest: float) -> list[tuple[str, float]]:
    kept, pieces, end = _kept(words), [], 0
    for place, word in enumerate(words):
        if not kept[place]:
            if place and kept[place - 1]:
                pieces.append((_GAP, 0.0))
        else:
            between = text[end : word.start] if not place or kept[place - 1] else ""
            share = word.weight / largest
            pieces += [(between, 0.0), (text[word.start : word.end], share if abs(share) >= _LEAST_SHARE else 0.0)]
        end = word.end
    if rest := len(text[end:].strip()):
        is_cut = rest > 1 or not words
        before = "" if pieces and pieces[-1][0] == _GAP else _GAP
        note = f"{before}({rest:,} more characters, which the model does not see)"
        pieces.append((note if is_cut else text[end:], 0.0))
    return [(_visible(piece), share) for piece, share in pieces if piece]


def _kept(words: Sequence[Word]) -> list[bool]:
    """Which words are shown."""
    if len(words) <= MOST_WORDS:
        return [True] * len(words)
    order = sorted(range(len(words)), key=lambda place: -abs(words[place].weight))
    heavy = [place for place in order[:_HEAVIEST] if words[place].weight]
    first = _BEGINNING if heavy else MOST_WORDS // 2
    return [place < first or any(abs(place - each) <= _AROUND for each in heavy) for place in range(len(words))]


def _visible(text: str) -> str:
    """Without characters that would change how the page is read, such as those that turn its direction."""
    return "".join(each if each.isprintable() or each.isspace() or each in _JOINERS else "\ufffd" for each in text)
