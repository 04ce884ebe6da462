"""Texts that are tokenised once: the same tokens as one by one, never stale, and nothing lost to what is damaged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddp_ft.contracts import BadSample
from ddp_ft.data.bad_samples.replace import Remaining
from ddp_ft.data.cells import cell_of_list
from ddp_ft.data.packed import PART, digest_of, keep, load, pack, read_samples, remove_others
from ddp_ft.data.packed_source import PackedSource, by_length, lengths_of, with_parts
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.text.packing import TextPacking
from ddp_ft.data.text.source import LabelledTexts, LabelledWords
from ddp_ft.data.text.tokenizer import NOWHERE, TextTokenizer, places_of
from ddp_ft.data.text.words import extents_of
from ddp_ft.errors import UserError
from tests.support.texts import sentences, tagged, write_encoder


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    from ddp_ft.models.libraries.transformers import processor as of

    encoder = write_encoder(tmp_path_factory.mktemp("encoder") / "bert")
    return replace(of(str(encoder), torch.nn.Identity(), None, "none"), length=64)


def texts_source(pairs=False, count=30):
    texts = [text for _, text in sentences(count)]
    texts[3], texts[4] = "", "an owl " * 100_000
    rows = [(text, f"{text} and"[::-1]) if pairs else (text,) for text in texts]
    weights = np.linspace(0.5, 1, count, dtype=np.float32)
    return LabelledTexts([str(n) for n in range(count)], rows, np.arange(count) % 3, weights)


def packed(source, packing):
    pieces = [range(start, min(start + PART, len(source))) for start in range(0, len(source), PART)]
    parts = [pack(packing, read_samples(source, packing, places)) for places in pieces]
    return PackedSource(source, parts, packing.measure)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_are_those_of_each_text_alone(processor, pairs):
    source, transform = texts_source(pairs), processor.eval_transform()
    found = packed(source, processor.packing())
    for index in range(len(source)):
        alone, together = transform(source.open(index)), transform(found.open(index))
        assert alone.keys() == together.keys() and ("second" in alone) == pairs
        for name, values in alone.items():
            assert torch.equal(values, together[name]) and values.dtype == together[name].dtype, (index, name)
    assert found.lengths.max() == 64 and found.lengths[3] == (4 if pairs else 2)  # "[CLS] [SEP] [UNK] [SEP]"


def test_a_set_of_more_than_one_part(processor):
    """The first and the last sample of each part."""
    source, transform = texts_source(count=2 * PART + 5), processor.eval_transform()
    found = packed(source, processor.packing())
    assert len(found.parts) == 3
    for index in (0, PART - 1, PART, 2 * PART - 1, 2 * PART, 2 * PART + 4):
        assert torch.equal(transform(source.open(index))["tokens"], found.open(index)["tokens"])
    order = by_length(found)
    assert sorted(order.tolist()) == list(range(len(source))) and (np.diff(found.lengths[order]) <= 0).all()


def test_files_give_the_same_tokens_and_none_of_what_was_damaged(processor, tmp_path):
    source, packing = texts_source(), processor.packing()
    part = pack(packing, read_samples(source, packing, range(30)))
    keep(tmp_path / "k", "name", part)
    mapped = load(tmp_path / "k", "name", check=True)
    assert isinstance(mapped.arrays["tokens"], np.memmap)
    assert all(np.array_equal(mapped.arrays[name], values) for name, values in part.arrays.items())
    file = tmp_path / "k/name.tokens.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load(tmp_path / "k", "name", check=True) is None
    file.write_bytes(content[:100])
    assert load(tmp_path / "k", "name", check=False) is None
    torn = b"\x93NUMPY\1\0v\0" + b"{'descr': '<u2', (((".ljust(117) + b"\n"
    for other in (b"", b"PK\3\4 and more", torn):
        file.write_bytes(other)
        assert load(tmp_path / "k", "name", check=False) is None
    file.unlink()
    assert load(tmp_path / "k", "name", check=False) is None
    (tmp_path / "k/name.json").write_text('{"crc": {}, "damaged": []}')
    assert load(tmp_path / "k", "name", check=False) is None


def test_the_name_follows_all_that_tokens_depend_on(processor):
    packing, shorter = processor.packing(), replace(processor, length=9).packing()
    other = replace(processor, tokenizer=processor.tokenizer.replace(b'"tide"', b'"tied"')).packing()
    assert len({each.key() for each in (packing, shorter, other, replace(processor, types=False).packing())}) == 4
    names = [
        [{"text": "ab"}, {"text": "c"}], [{"text": "a"}, {"text": "bc"}], [{"text": "ab", "text_pair": "c"}],
        [{"text": "abc"}], [{"text": "ab"}, None, {"text": "c"}], [{"text": "ab"}, {"text": ""}, {"text": "c"}],
    ]  # fmt: skip
    assert len({digest_of(packing, samples) for samples in names}) == len(names)
    far = [{"text": "owl " * 10_000 + end} for end in ("a", "b")]  # beyond what a tokenizer looks at
    assert len({digest_of(packing, [packing.abridged(each)]) for each in far}) == 1


def test_what_others_left_is_removed(processor, tmp_path):
    packing = processor.packing()
    part = pack(packing, read_samples(texts_source(), packing, range(30)))
    for folder, name in (("new", "one"), ("new", "two"), ("old", "one")):
        keep(tmp_path / folder, name, part)
    remove_others(tmp_path / "new", ["two"])
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert load(tmp_path / "new", "two", check=True) and load(tmp_path / "new", "one", check=False) is None


def test_a_text_that_cannot_be_read_is_read_again(processor, tmp_path):
    contents = [b"a ship", b"\xff", b"an owl near the moss", b""]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_bytes(content)
    source = LabelledFileSource(tmp_path, [f"{n}.txt" for n in range(4)], np.array([0, 1, 1, 0]), None, "text")
    found, transform = packed(source, processor.packing()), processor.eval_transform()
    with pytest.raises(BadSample, match="not UTF-8"):
        found.open(1)
    (tmp_path / "1.txt").write_bytes(b"mended")
    assert transform(found.open(1))["tokens_length"] == 3
    assert found.open(2).keys() == {"tokens", "tokens_length", "target"}
    kept = with_parts(Remaining(source, {1: "bad"}), lambda inner: packed(inner, processor.packing()))
    assert len(kept) == 3 and lengths_of(kept).tolist() == [4, 7, 2]
    assert [len(kept.open(index)["tokens"]) for index in range(3)] == [4, 7, 2]
    assert lengths_of(source) is None


def words_source(count=30):
    sentences_of = [words for words, _ in tagged(count)]
    sentences_of[2], sentences_of[5] = [" ", "owl"], ["moss"] * 300
    targets = np.empty(count, object)
    targets[:] = [np.zeros(len(words), np.int64) for words in sentences_of]
    return LabelledWords([str(n) for n in range(count)], [(cell_of_list(words),) for words in sentences_of], targets)


def test_words_have_the_place_of_their_first_token(processor):
    source, of_words = words_source(), replace(processor, of_words=True)
    transform, found = of_words.eval_transform(), packed(source, of_words.packing())
    for index in range(len(source)):
        alone, together = transform(source.open(index)), transform(found.open(index))
        assert alone.keys() == together.keys()
        assert all(torch.equal(values, together[name]) for name, values in alone.items())
        assert len(alone["places"]) == len(alone["target"]) == int(alone["target_length"])
    assert transform(source.open(2))["places"].tolist() == [NOWHERE, 1]
    long = transform(source.open(5))["places"].tolist()
    assert long[:62] == list(range(1, 63)) and set(long[62:]) == {NOWHERE} and len(long) == 300
    assert of_words.packing().key() != processor.packing().key()


def test_a_text_is_divided_into_words(processor):
    text = "A ship-wreck (old);  the owl's moss."
    made = replace(processor, of_words=True).eval_transform()({"text": text})
    words = [text[start:end] for start, end in made["extents"].tolist()]
    assert words == ["A", "ship-wreck", "(", "old", ")", ";", "the", "owl's", "moss", "."]
    assert int(made["extents_length"]) == int(made["places_length"]) == len(words)
    empty = replace(processor, of_words=True).eval_transform()({"text": " "})
    assert empty["extents"].shape == (0, 2) and empty["places"].shape == (0,)


@pytest.mark.parametrize("step", ["ByteLevel", "Metaspace"])
def test_each_word_stands_after_a_space(step):
    """As words of a text do, but for the first one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    mark = {"ByteLevel": "\u0120", "Metaspace": "\u2581"}[step]
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "owl": 1, f"{mark}owl": 2}, unk_token="?"))
    given = {"ByteLevel": {"add_prefix_space": False}, "Metaspace": {"prepend_scheme": "first"}}[step]
    tokenizer.pre_tokenizer = getattr(pre_tokenizers, step)(**given)
    of_words = TextTokenizer(tokenizer.to_str().encode(), 9, of_words=True)
    assert of_words.many_words([["owl", "owl"]])[0].ids == [2, 2]


def test_the_place_of_a_word_is_that_of_its_first_token():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece({"?": 0, "un": 1, "##like": 2, "##ly": 3, "owl": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    [found] = TextTokenizer(tokenizer.to_str().encode(), 5, of_words=True).many_words([["unlikely", "owl", "unlikely"]])
    assert found.ids == [1, 2, 3, 4, 1] and places_of(found, 4).tolist() == [0, 3, 4, NOWHERE]


def test_what_utf_8_lacks_is_a_question_mark(processor):
    transform, of_words = processor.eval_transform(), replace(processor, of_words=True)
    odd, plain = ({"text": f"{mark} wave"} for mark in ("\ud800", "?"))
    assert transform(odd)["tokens"].tolist() == transform(plain)["tokens"].tolist()
    packed_odd, packed_plain = (processor.packing().pack([each])["tokens"].tolist() for each in (odd, plain))
    assert packed_odd == packed_plain
    assert len(of_words.eval_transform()({"words": ["\ud800", "wave"]})["places"]) == 2


def test_given_words_stay_whole_and_pairs_are_none(processor):
    made = replace(processor, of_words=True).eval_transform()
    assert made({"words": ["U.S.", "ship"]})["extents"].tolist() == [[0, 4], [5, 9]]
    assert processor.eval_transform()({"words": ["a", "ship"]})["tokens_length"] == 4
    with pytest.raises(UserError, match="single texts"):
        made({"text": "a", "text_pair": "b"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Zu\u0308rich, ok", ["Zu\u0308rich", ",", "ok"]),
        ("我爱 BERT模型", ["我", "爱", "BERT", "模", "型"]),
        ("a\u200bb 3.5", ["a", "b", "3.5"]),
    ],
)
def test_words_of_other_scripts(text, words):
    assert [text[start:end] for start, end in extents_of(text)] == words


def test_numbers_of_tokens_may_have_gaps():
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"?": 0, "owl": 70_000}, unk_token="?"))
    made = TextTokenizer(tokenizer.to_str().encode(), 5)
    assert made.words == 70_001 and TextPacking(made, b"", False).pack([{"text": "owl"}])["tokens"].tolist() == [70_000]
