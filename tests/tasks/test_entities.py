"""Entities by the rules of conlleval: of any sequences of tags, and their precision, recall and F1."""

import itertools
import random
import warnings

import numpy as np
import pytest

from ddp_ft.tasks.entities import counts_of, entities_of, precision_recall_f1, types_of

NAMES = ("O", "B-A", "I-A", "E-A", "S-A", "B-B-C", "I-B-C", "E-B-C", "S-B-C")


def found(*sentences):
    tags = np.array([NAMES.index(tag) for words in sentences for tag in words.split()], np.int64)
    lengths = np.array([len(words.split()) for words in sentences])
    types = types_of(NAMES)
    return {
        (sample, types[kind], start, stop) for sample, kind, start, stop in entities_of(tags, lengths, NAMES).as_set()
    }


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", {("A", 1, 3)}),
        ("B-A B-A I-A", {("A", 0, 1), ("A", 1, 3)}),
        ("I-A I-A O I-A", {("A", 0, 2), ("A", 3, 4)}),
        ("B-A I-B-C", {("A", 0, 1), ("B-C", 1, 2)}),
        ("B-A E-A S-A O E-A", {("A", 0, 2), ("A", 2, 3), ("A", 4, 5)}),
        ("B-A E-A I-A", {("A", 0, 2), ("A", 2, 3)}),
        ("O O", set()),
    ],
)
def test_sequences(tags, expected):
    assert found(tags) == {(0, *each) for each in expected}


def test_no_entity_goes_on_in_the_next_sentence():
    assert found("O B-A", "I-A O", "I-A") == {(0, "A", 1, 2), (1, "A", 0, 1), (2, "A", 0, 1)}


def test_what_is_not_defined_is_0():
    assert precision_recall_f1(0, 0, 3) == (0.0, 0.0, 0.0) and precision_recall_f1(2, 4, 2) == (0.5, 1.0, 2 / 3)


def drawn(seed):
    """Sentences with tags that are there, and others that are predicted."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 8) for _ in range(draw.randint(1, 5))]
    return lengths, [[[draw.choice(NAMES[: draw.choice([3, 5, 9])]) for _ in range(n)] for n in lengths] for _ in "ab"]


@pytest.mark.parametrize("seed", range(40))
def test_the_figures_are_those_of_seqeval(seed):
    metrics = pytest.importorskip("seqeval.metrics")
    lengths, (true, predicted) = drawn(seed)
    numbers = [np.array([NAMES.index(tag) for tag in itertools.chain(*each)]) for each in (predicted, true)]
    entities = [entities_of(each, np.array(lengths), NAMES) for each in numbers]
    counts = counts_of(*entities, len(lengths), 2)
    assert counts.shape == (3, len(lengths), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not defined
        wanted = [metrics.precision_score, metrics.recall_score, metrics.f1_score]
        expected = [float(each(true, predicted)) for each in wanted]
        report = metrics.classification_report(true, predicted, output_dict=True)
    assert precision_recall_f1(*counts.sum((1, 2)).tolist()) == pytest.approx(tuple(expected), abs=1e-12)
    for place, name in enumerate(types_of(NAMES)):
        if name in report:
            own = precision_recall_f1(*counts.sum(1)[:, place].tolist())
            assert own[2] == pytest.approx(report[name]["f1-score"], abs=1e-12)
