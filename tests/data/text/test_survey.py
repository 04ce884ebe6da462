"""All texts looked at: damaged, empty and same ones, lengths; and the findings that follow."""

import numpy as np
import pytest

from ddp_ft.config.loading import make_config
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.text.normal_form import normal_form
from ddp_ft.data.text.source import LabelledTexts
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING
from ddp_ft.diagnostics.texts import examine_texts
from ddp_ft.models.libraries.transformers import processor
from tests.support.texts import write_encoder

ROWS = [
    ("train", "sea", "the wave and the ship"),
    ("train", "wood", "an old oak"),
    ("train", "wood", "a deer, by the oak"),
    ("train", "sea", "salt tide gull " * 30),
    ("val", "wood", "moss near a fern"),
    ("val", "sea", "a gull was there"),
]


def told(rows, encoder=None, **data):
    """The findings by name about these (split, class, text) or (split, class, text, second text)."""

    def source(split):
        chosen = [row for row in rows if row[0] == split]
        names = [f"{split}:{number}" for number in range(len(chosen))]
        targets = np.array([row[1] == "wood" for row in chosen], np.int64)
        return LabelledTexts(names, [row[2:] for row in chosen], targets)

    config = make_config({"data.path": "t.jsonl", **{f"data.{name}": data[name] for name in data}}).data
    model = None if encoder is None else processor(str(encoder), None, None, "").configured(config)
    sources = {split: source(split) for split in ("train", "val")}
    return {finding.name: finding for finding in examine_texts(sources, config, model, None)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from ddp_ft.models.libraries import transformers

    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "bert")
    patch = pytest.MonkeyPatch()
    patch.setattr(transformers, "_embedded", lambda module: None)  # the model itself is not needed here
    yield folder
    patch.undo()


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("An old  OAK.", "an old oak", True),
        ("caf\u00e9 \uff11", "cafe\u0301 1", True),  # composed or not, of full width or not
        ("\u201cyes\u201d \u2014 no", "yes no", True),
        ("stra\u00dfe", "STRASSE", True),
        ("5 $", "5 \u20ac", False),
        ("good \U0001f600", "good \U0001f621", False),
        ("\u0915\u093f", "\u0915\u0940", False),  # Devanagari: another vowel
        ("?", "!", False),
        ("an oak", "an old oak", False),
    ],
)
def test_what_is_the_same_text(one, other, same):
    assert (normal_form(one) == normal_form(other)) is same


def test_sound_texts(encoder):
    found = told([row for row in ROWS if len(row[2]) < 200], encoder)
    assert {each.verdict for each in found.values()} == {OK}
    assert set(found) == {"readable", "empty", "leakage", "label noise", "duplicates", "lengths", "cut texts"}
    assert found["lengths"].value == 6 and "5 to 8 tokens" in found["lengths"].text  # with [CLS] and [SEP]


@pytest.mark.parametrize(
    "more, name, verdict, words",
    [
        (("val", "wood", "an old oak"), "leakage", PROBLEM, "1 group of the same texts in train and val"),
        (("val", "wood", "An old oak!"), "leakage", WARNING, "but for case"),
        (("train", "sea", "An OLD oak"), "label noise", WARNING, "1 group of the same text with different labels"),
        (("train", "wood", "an old oak"), "duplicates", NOTE, "1 group of the same text several times"),
        (("train", "wood", " \n"), "empty", WARNING, "1 text without a letter"),
    ],
)
def test_each_check_fires_alone(more, name, verdict, words):
    found = told([*ROWS[:3], *ROWS[4:], more])
    assert {each.name for each in found.values() if each.verdict != OK} == {name}
    assert found[name].verdict == verdict and words in found[name].text
    assert len(found[name].paths) == 1 and found[name].value == 1 and found[name].remedy


def test_one_of_two_groups_is_the_same_to_the_letter():
    found = told([*ROWS, ("val", "wood", "an old oak"), ("val", "sea", "The wave and the ship")])
    assert found["leakage"].verdict == PROBLEM
    assert "2 groups" in found["leakage"].text and "1 to the letter, the others but for case" in found["leakage"].text


def test_pairs_are_the_same_if_both_texts_are():
    rows = [(*row, "a fern") for row in ROWS]
    assert told([*rows, ("val", "wood", "an old oak", "a path")])["leakage"].verdict == OK
    assert told([*rows, ("val", "wood", "an old oak", "a fern")])["leakage"].verdict == PROBLEM


def test_what_is_cut_off_is_counted_by_the_models_own_tokens(encoder):
    found = told(ROWS, encoder)["cut texts"]  # 92 tokens, and the model takes 64; 124 in all
    assert (found.verdict, found.value, len(found.paths)) == (WARNING, pytest.approx(1 / 6), 1)
    assert "16.7 % of the texts are longer than 64 tokens: 22.6 % of all tokens" in found.text
    assert "The model takes 64 tokens" in found.remedy
    shorter = told(ROWS, encoder, max_length=7)["cut texts"]
    assert "33.3 % of the texts are longer than 7" in shorter.text and "data.max_length=64" in shorter.remedy


def test_lengths_without_a_model_are_in_characters():
    found = told(ROWS, max_length=20)
    assert found["lengths"].unit == "characters" and "10 to 450" in found["lengths"].text
    assert found["cut texts"].verdict == NOTE and len(found["cut texts"].paths) == 1
    assert "by 4 characters a token" in found["cut texts"].text


def test_files_that_are_no_texts(tmp_path):
    for split in ("train", "val"):
        for name in ("sea", "wood"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.txt").write_text(f"{split} {name}")
    (tmp_path / "train/sea/b.txt").write_bytes(b"caf\xe9")
    config = make_config({"data.path": tmp_path})
    splits = open_splits(config.data, 0)
    sources = {"train": splits.train, "val": splits.val}
    [found] = [each for each in examine_texts(sources, config.data, None, None) if each.verdict != OK]
    assert (found.name, found.verdict, found.text) == ("readable", PROBLEM, "1 of 5 texts cannot be read")
    assert "b.txt: it is not UTF-8" in found.paths[0]
