"""What is learned of words, and what is answered: by hand, on a few of them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddp_ft.config.loading import make_config
from ddp_ft.data.batch import cut, joined
from ddp_ft.tasks.registry import restore_task
from ddp_ft.tasks.token_labels import TokenLabels

NAMES = ("O", "B-a", "I-a", "B-b")


@pytest.fixture
def batch():
    """Two sentences of 3 and 2 words; the second word of the first one has no token."""
    return {
        "places": torch.tensor([[1, -1, 3], [2, 1, 0]]),
        "places_length": torch.tensor([3, 2]),
        "target": torch.tensor([[1, 2, 0], [3, 0, 0]]),
        "target_length": torch.tensor([3, 2]),
        "weight": torch.tensor([1.0, 0.5]),
    }


OUTPUTS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
# (sentence, token, tag) of the words that have a token.
SEEN = ((0, 1, 1), (0, 3, 0), (1, 2, 3), (1, 1, 0))


def task(**settings):
    targets = np.empty(2, object)
    targets[:] = [np.array([1, 2, 0]), np.array([3, 0])]
    return TokenLabels.from_data(make_config({f"loss.{key}": value for key, value in settings.items()}), NAMES, targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_summed_over_words_with_a_token(batch, smoothing):
    outputs = OUTPUTS.clone().requires_grad_()
    loss, weight = task(label_smoothing=smoothing).loss(outputs, batch)
    each = [F.cross_entropy(OUTPUTS[s, token], torch.tensor(tag), label_smoothing=smoothing) for s, token, tag in SEEN]
    assert float(loss.detach()) == pytest.approx(float(each[0] + each[1] + 0.5 * each[2] + 0.5 * each[3]), rel=1e-6)
    assert float(weight) == 3.0
    loss.backward()
    touched = {(s, token) for s, token in (outputs.grad.abs().sum(-1) > 0).nonzero().tolist()}
    assert touched == {(s, token) for s, token, _ in SEEN}


def test_classes_weigh_words(batch):
    plain, weighted = task(label_smoothing=0.0), task(label_smoothing=0.0, class_weights="1,2,3,4")
    assert plain.weights is None
    ratios = weighted.weights / weighted.weights[0]
    assert ratios.tolist() == pytest.approx([1, 2, 3, 4])
    expected = sum(float(weighted.weights[tag]) * (1.0, 0.5)[s] for s, _, tag in SEEN)
    assert float(weighted.loss(OUTPUTS, batch)[1]) == pytest.approx(expected)


def test_sentences_without_a_word_have_a_gradient_of_0(batch):
    empty = {**batch, "places": torch.full((2, 3), -1)}
    outputs = OUTPUTS.clone().requires_grad_()
    loss, weight = task().loss(outputs, empty)
    loss.backward()
    assert (float(loss.detach()), float(weight)) == (0, 0) and not outputs.grad.any()


def test_metrics_and_answers(batch):
    """Word 2 is outside by prediction, so that its entity of two words is found as one of one word."""
    outputs = torch.zeros(2, 5, 4)
    for sentence, token, tag in SEEN:
        outputs[sentence, token, tag] = 9.0
    made = task()
    parts = [made.predictions(outputs[row : row + 1], part) for row, part in enumerate(cut([batch], 1))]
    predictions, records = joined(parts), made.records(batch)
    found = made.metrics(predictions, records)
    assert found["unseen"] == pytest.approx(0.2) and found["accuracy"] == pytest.approx(0.8)
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    assert found["loss"] == pytest.approx(float(-F.log_softmax(outputs[0, 1], -1)[1]), abs=1e-5)
    first, second = made.answers(predictions)
    assert [(each["type"], each["start"], each["end"]) for each in first["entities"]] == [("a", 0, 1)]
    assert [each["type"] for each in second["entities"]] == ["b"]
    extents = torch.tensor([[[0, 4], [5, 6], [7, 9]], [[3, 8], [9, 10], [0, 0]]])
    placed = made.answers({**predictions, "extents": extents, "extents_length": torch.tensor([3, 2])})
    assert placed[1]["entities"][0]["start"] == 3 and placed[1]["entities"][0]["end"] == 8
    assert made.row(placed[1]) == ["3-8 b"] and made.target_words(batch, 0) == ["a"]
    scored = made.scored_set(predictions, records)
    assert {row["name"]: row["f1"] for row in scored.class_table()} == {"a": 0.0, "b": 1.0}
    weights = np.array([[1.0, 1.0], [0.0, 2.0]])
    assert scored.statistics()["f1"](weights).tolist() == [0.5, 1.0]


def test_several_models_are_averaged(batch):
    made = task()
    first, second = (made.predictions(OUTPUTS * sign, batch) for sign in (1, -1))
    mean = made.combine([first, second])["probabilities"]
    assert torch.allclose(mean[0, 0], (OUTPUTS[0, 1].softmax(-1) + (-OUTPUTS[0, 1]).softmax(-1)) / 2)
    assert not mean[0, 1].any()


def test_it_is_made_again_of_its_settings():
    made = restore_task("token-labels", json.loads(json.dumps(task().settings())))
    assert (made.names, made.types, made.unit) == (NAMES, ("a", "b"), "word")
