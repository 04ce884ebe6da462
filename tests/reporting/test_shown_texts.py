"""Texts of a report: which words are shown, how they are coloured, and that they cannot change the page."""

from dataclasses import replace

import pytest
import torch

from ddp_ft.inference.trained_model import load_trained
from ddp_ft.inference.word_weights import Word, words_of
from ddp_ft.reporting.shown_texts import MOST_WORDS, pieces_of, shown_words
from tests.support.texts import write_encoder, write_model


def words(text, weights=None):
    found, place = [], 0
    for number, word in enumerate(text.split()):
        start = text.index(word, place)
        place = start + len(word)
        found.append(Word(start, place, (weights or {}).get(number, 0.0)))
    return found


def told(pieces):
    return "".join(piece for piece, _ in pieces)


def test_a_short_text_is_whole_and_its_heavy_words_are_coloured():
    text = "an  old oak, near\na ship"
    [pieces] = pieces_of({"text": text}, [words(text, {1: -0.5, 2: 2.0, 4: 0.1})])
    assert told(pieces) == text
    assert [(piece, share) for piece, share in pieces if share] == [("old", -0.25), ("oak,", 1.0)]


def test_a_long_text_is_shortened_around_them():
    text = " ".join(f"w{number}" for number in range(500))
    [pieces] = pieces_of({"text": text}, [words(text, {300: 3.0, 303: -1.0})])
    assert told(pieces).startswith("w0 w1 ") and "w11 … w294 w295" in told(pieces)
    assert told(pieces).endswith("w309 … ") and len(told(pieces).split()) < MOST_WORDS
    assert {piece for piece, share in pieces if share} == {"w300", "w303"}


def test_what_the_model_does_not_see_is_not_shown_as_if_it_did():
    [pieces] = pieces_of({"text": "an oak and more text"}, [words("an oak")])
    assert told(pieces) == "an oak … (13 more characters, which the model does not see)"


def test_characters_that_change_the_page_are_replaced():
    text = "a\u202eb\x00 <b>\U0001f469\u200d\U0001f33e"
    [pieces] = pieces_of({"text": text}, [words(text)])
    assert told(pieces) == "a\ufffdb\ufffd <b>\U0001f469\u200d\U0001f33e"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return load_trained(write_model(folder / "m", write_encoder(folder / "bert")), torch.device("cpu"))


def test_weights_are_how_far_the_answer_moves_with_a_words_embedding(model):
    """Numerically: all tokens of a word a little larger."""
    sample = {"text": "an old oak near", "text_pair": "a ship"}
    found = words_of(model, sample, weighs=True)
    cut = [[text[word.start : word.end] for word in each] for text, each in zip(sample.values(), found, strict=True)]
    assert cut == [["an", "old", "oak", "near"], ["a", "ship"]]
    embedding, scale = model.module.get_input_embeddings(), 1e-2

    def score(token, factor):
        batch = model.processor.eval_transform()(sample)
        batch = {name: tensor[None] for name, tensor in batch.items()}
        change = torch.ones(batch["tokens"].shape[1], 1)
        change[token] = factor
        with torch.no_grad(), embedding.register_forward_hook(lambda module, given, output: output * change):
            [outputs] = model.call(model.module, batch)
        return outputs

    largest = score(0, 1.0).argmax()

    def raised(token, factor):
        outputs = score(token, factor)
        return float(outputs[largest] - outputs.mean())

    tokens = [1, 2, 3, 4, 6, 7]  # between [CLS], [SEP] and [SEP]
    measured = [(raised(token, 1 + scale) - raised(token, 1 - scale)) / (2 * scale) for token in tokens]
    assert [word.weight for each in found for word in each] == pytest.approx(measured, abs=2e-3, rel=2e-2)


def test_without_weights_the_words_are_the_same(model):
    sample = {"text": "an old oak near"}
    [plain], [weighed] = words_of(model, sample, weighs=False), words_of(model, sample, weighs=True)
    assert [word[:2] for word in plain] == [word[:2] for word in weighed]
    assert not any(word.weight for word in plain) and any(word.weight for word in weighed)


def test_a_model_without_gradients_is_shown_without_weights(model):
    def call(module, batch):
        return torch.zeros(1, 3) + float(len(batch))

    [found] = shown_words(replace(model, call=call), {"text": "an old oak"}, True)
    assert [word.weight for word in found] == [0.0, 0.0, 0.0]
