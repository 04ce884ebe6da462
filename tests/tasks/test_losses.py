"""Losses against torch, torchvision, timm, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from tests.tasks.task_cases import (
    DATA,
    ONE_NUMBER,
    batch_of,
    estimates_of,
    make,
    metrics_of,
    outputs_for,
    refuses,
    row_of,
)


def mean_loss(task, outputs, batch):
    loss, weight = task.loss(outputs, batch)
    return float(loss / weight)


def approx(expected):
    return pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["auto", "cross_entropy"])
def test_cross_entropy(name, smoothing):
    task, batch = make(LABEL, loss__name=name, loss__label_smoothing=smoothing), batch_of(LABEL)
    outputs = outputs_for(task)
    expected = F.cross_entropy(outputs, batch["target"], label_smoothing=smoothing)
    assert mean_loss(task, outputs, batch) == approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma, smoothing):
    settings = {"loss__name": "focal", "loss__focal_gamma": gamma, "loss__label_smoothing": smoothing}
    task, batch = make(LABEL, **settings), batch_of(LABEL)
    outputs = outputs_for(task)
    p = outputs.double().softmax(1)
    shares = F.one_hot(batch["target"]) * (1 - smoothing) + smoothing / 3
    assert mean_loss(task, outputs, batch) == approx((-shares * (1 - p) ** gamma * p.log()).sum(1).mean())
    if gamma == 0:
        expected = F.cross_entropy(outputs, batch["target"], label_smoothing=smoothing)
        assert mean_loss(task, outputs, batch) == approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_vs_all(smoothing):
    from timm.loss import BinaryCrossEntropy

    task, batch = make(LABEL, loss__name="bce", loss__label_smoothing=smoothing), batch_of(LABEL)
    outputs = outputs_for(task)
    expected = BinaryCrossEntropy(smoothing, sum_classes=True)(outputs, batch["target"])
    assert mean_loss(task, outputs, batch) == approx(expected)


def test_soft_f1_of_one_label_is_what_its_probability_lacks():
    task, batch = make(LABEL, loss__name="soft_f1"), batch_of(LABEL)
    outputs = outputs_for(task)
    p = outputs.softmax(1)[torch.arange(len(outputs)), batch["target"]]
    assert mean_loss(task, outputs, batch) == approx((1 - p).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_cross_entropy(smoothing):
    from timm.loss import BinaryCrossEntropy

    task, batch = make(LABELS, loss__label_smoothing=smoothing), batch_of(LABELS)
    outputs = outputs_for(task)
    expected = BinaryCrossEntropy(smoothing, smooth_dense=True)(outputs, batch["target"])
    assert mean_loss(task, outputs, batch) == approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_labels_focal(gamma):
    from torchvision.ops import sigmoid_focal_loss

    task = make(LABELS, loss__name="focal", loss__focal_gamma=gamma, loss__label_smoothing=0)
    batch, outputs = batch_of(LABELS), outputs_for(task)
    expected = sigmoid_focal_loss(outputs, batch["target"], alpha=-1, gamma=gamma, reduction="mean")
    assert mean_loss(task, outputs, batch) == approx(expected)


def test_labels_soft_f1_by_hand():
    """p = (1/2, 1/2, 1/2): with one label 1 - (2/2 + 1) / (3/2 + 1 + 1), with none 1 - 1 / (3/2 + 1)."""
    task = make(LABELS, loss__name="soft_f1")
    batch = {"target": torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "weight": torch.tensor([1.0, 0.0])}
    assert mean_loss(task, torch.zeros(2, 3), batch) == approx(1 - 2 / 3.5)
    assert mean_loss(task, torch.zeros(2, 3), {**batch, "weight": torch.tensor([0.0, 1.0])}) == approx(1 - 1 / 2.5)


def test_labels_from_class_folders_are_one_hot():
    task, batch = make(LABEL, task="multi-label"), batch_of(LABEL)
    one_hot = {**batch, "target": F.one_hot(batch["target"]).float()}
    outputs = outputs_for(task)
    assert mean_loss(task, outputs, batch) == mean_loss(task, outputs, one_hot)
    assert metrics_of(task, outputs, batch) == metrics_of(task, outputs, one_hot)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, F.mse_loss),
        ({"loss__name": "mse"}, F.mse_loss),
        ({"loss__name": "l1"}, F.l1_loss),
        ({"loss__name": "huber", "loss__huber_delta": 0.3}, lambda a, b: F.huber_loss(a, b, delta=0.3)),
    ],
)
@pytest.mark.parametrize("data", [DATA[NUMBERS], ONE_NUMBER], ids=["two", "one"])
def test_regression_is_of_standardised_numbers(settings, expected, data):
    task, batch = make(NUMBERS, data, **settings), batch_of(NUMBERS, data)
    outputs, values = outputs_for(task), data[1]
    standard = torch.from_numpy((values - values.mean(0)) / values.std(0))
    assert mean_loss(task, outputs, batch) == approx(expected(outputs, standard))
    assert metrics_of(task, outputs, batch)["loss"] == pytest.approx(float(expected(outputs, standard)), abs=1e-5)


def test_small_deviations_of_large_numbers_survive():
    values = (1e6 + np.arange(7) % 3).astype(np.float32).reshape(-1, 1)
    task = make(NUMBERS, (("year",), values))
    precise = values.astype(np.float64)
    exact = torch.from_numpy((precise - precise.mean(0)) / precise.std(0)).float()
    assert metrics_of(task, exact, batch_of(NUMBERS, (("year",), values)))["mae"] < 1e-5
    assert row_of(task, estimates_of(task, exact)[1].tolist()) == ["1000001"]


def test_evaluation_has_neither_smoothing_nor_weights():
    plain = make(LABEL, loss__label_smoothing=0)
    other = make(LABEL, loss__label_smoothing=0.5, loss__class_weights="1,2,3")
    batch, outputs = batch_of(LABEL), outputs_for(plain)
    assert metrics_of(other, outputs, batch) == metrics_of(plain, outputs, batch)
    assert mean_loss(other, outputs, batch) != pytest.approx(mean_loss(plain, outputs, batch), rel=1e-2)
    labels = batch_of(LABELS)
    plain = make(LABELS, loss__label_smoothing=0)
    other = make(LABELS, loss__label_smoothing=0.5, loss__class_weights="1,2,3", loss__positive_weights="5,6,7")
    assert metrics_of(other, outputs, labels) == metrics_of(plain, outputs, labels)


def test_mixing_is_cross_entropy_of_the_mixed_target():
    batch, share = batch_of(LABEL), torch.linspace(0, 1, 11)
    partner = torch.arange(11).roll(4)
    one_hot = F.one_hot(batch["target"]).float()
    mixed = share[:, None] * one_hot + (1 - share[:, None]) * one_hot[partner]
    more = {"mix_share": share, "mix_partner": partner}
    task = make(LABEL, loss__label_smoothing=0.1)
    outputs = outputs_for(task)
    expected = F.cross_entropy(outputs, mixed, label_smoothing=0.1)
    assert mean_loss(task, outputs, {**batch, **more}) == approx(expected)


def test_mixing_of_labels_is_cross_entropy_of_the_mixed_target():
    batch, share = batch_of(LABELS), torch.linspace(0, 1, 11)
    partner = torch.arange(11).roll(4)
    mixed = share[:, None] * batch["target"] + (1 - share[:, None]) * batch["target"][partner]
    task = make(LABELS, loss__label_smoothing=0)
    outputs = outputs_for(task)
    more = {"mix_share": share, "mix_partner": partner}
    assert mean_loss(task, outputs, {**batch, **more}) == approx(F.binary_cross_entropy_with_logits(outputs, mixed))


def test_mixing_weighs_each_of_the_two():
    """Worked out for two samples of equal outputs: log 3 each, so only the weights are left."""
    task = make(LABEL, loss__class_weights="1,2,4", loss__label_smoothing=0)
    unit = float(task.weights[0])
    batch = {
        "target": torch.tensor([0, 2]), "weight": torch.tensor([1.0, 3.0]),
        "mix_share": torch.tensor([0.75, 0.5]), "mix_partner": torch.tensor([1, 0]),
    }  # fmt: skip
    loss, weight = task.loss(torch.zeros(2, 3), batch)
    expected = unit * (0.75 * 1 * 1 + 0.25 * 3 * 4 + 0.5 * 3 * 4 + 0.5 * 1 * 1)
    assert (float(weight), float(loss)) == (approx(expected), approx(expected * math.log(3)))


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        (LABEL, "mse", ["mse", "single-label", "cross_entropy, focal, bce, soft_f1"]),
        (LABELS, "cross_entropy", ["multi-label", "bce, focal, soft_f1"]),
        (NUMBERS, "focal", ["regression", "mse, l1, huber"]),
        (LABEL, "crossentropy", ["no loss 'crossentropy'", "Here that is cross_entropy."]),
        (NUMBERS, "qqq", ["no loss 'qqq'", "mse, l1, huber"]),
    ],
)
def test_a_loss_that_does_not_fit(kind, name, parts):
    refuses(*parts, kind=kind, loss__name=name)
