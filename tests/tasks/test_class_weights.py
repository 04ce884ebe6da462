"""Class weights and positive weights: their values, what they do, and every way to give them wrongly."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from tests.tasks.task_cases import CLASSES, DATA, batch_of, make, outputs_for, refuses

COUNTS = np.array([6, 3, 2])


def scaled(weights):
    """So that the mean over the training samples is 1."""
    weights = np.array(weights, float)
    return weights * COUNTS.sum() / (weights * COUNTS).sum()


def effective(beta):
    return (1 - beta) / (1 - beta**COUNTS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss__class_weights": "balanced"}, 11 / (3 * COUNTS)),
        ({"loss__class_weights": "effective"}, effective(0.999)),
        ({"loss__class_weights": "effective", "loss__effective_beta": 0.5}, effective(0.5)),
        ({"loss__class_weights": "effective", "loss__effective_beta": 0.0}, [1, 1, 1]),
        ({"loss__class_weights": "1, 2.5,0"}, [1, 2.5, 0]),
        ({"loss__class_weights": [1, 2, 3]}, [1, 2, 3]),
        ({"loss__class_weights": "1 2  3"}, [1, 2, 3]),
        ({"loss__class_weights": "[1, 2, 3,]"}, [1, 2, 3]),
        ({"loss__class_weights": "{cat: 3, ant: 1, bee: 2.0}"}, [1, 2, 3]),
    ],
)
def test_values(settings, expected):
    weights = make(LABEL, **settings).weights
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), scaled(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", "[1, 2, 3]"),
        ("list.yaml", "- 1\n- 2\n- 3\n"),
        ("mapping.json", json.dumps({"cat": 3, "ant": 1, "bee": 2.0})),
        ("mapping.yml", "cat: 3\nant: 1\nbee: 2\n"),
    ],
)
def test_values_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    np.testing.assert_allclose(make(LABEL, loss__class_weights=str(tmp_path / name)).weights, scaled([1, 2, 3]))


def test_class_names_that_look_like_numbers(tmp_path):
    data = (("0", "1", "no"), DATA[LABEL][1])
    (tmp_path / "weights.json").write_text('{"0": 1, "1": 2, "no": 3}')
    weights = make(LABEL, data, loss__class_weights=str(tmp_path / "weights.json")).weights
    np.testing.assert_allclose(weights, scaled([1, 2, 3]))
    data = (("010", "no", "2020-01-01"), DATA[LABEL][1])
    (tmp_path / "weights.yaml").write_text("no: 2\n010: 1e0\n2020-01-01: 3\n")
    weights = make(LABEL, data, loss__class_weights=str(tmp_path / "weights.yaml")).weights
    np.testing.assert_allclose(weights, scaled([1, 2, 3]))


def test_a_text_is_a_list_before_it_is_a_file(tmp_path, monkeypatch):
    many = ["1.25"] * 60
    refuses("60 weights for 3 classes", loss__class_weights=",".join(many))
    refuses("x among 61 weights is no number", loss__class_weights=",".join([*many, "x"]))
    refuses("; among", loss__class_weights="1,2,;")
    refuses("no mapping", loss__class_weights="{cat: 1, ")
    refuses("cannot be read", loss__class_weights="weights_of_the_classes" * 30)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my 2 weights, new.json").write_text("[1, 2, 3]")
    values = make(LABEL, loss__class_weights="my 2 weights, new.json").weights
    np.testing.assert_allclose(values, scaled([1, 2, 3]))


def test_a_class_without_training_samples_does_no_harm():
    data = (CLASSES, np.array([0, 0, 1, 0]))
    for rule in ("balanced", "effective"):
        assert bool(make(LABEL, data, loss__class_weights=rule).weights.isfinite().all())
    labels = (CLASSES, np.array([[1, 0, 0], [1, 1, 0]], np.float32))
    assert make(LABELS, labels, loss__positive_weights="balanced").positive.tolist() == pytest.approx([0.01, 1.0, 1.0])


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce", "soft_f1"])
def test_they_weigh_samples_besides_the_samples_own_weights(name):
    weighted = make(LABEL, loss__name=name, loss__class_weights="1,2,4")
    plain = make(LABEL, loss__name=name)
    outputs, own = outputs_for(plain), torch.linspace(0.1, 2, 11)
    batch = batch_of(LABEL, weight=own)
    by_hand = batch_of(LABEL, weight=own * weighted.weights[batch["target"]])
    torch.testing.assert_close(weighted.loss(outputs, batch), plain.loss(outputs, by_hand))
    assert float(weighted.weights[batch["target"]].mean()) == pytest.approx(1)


def test_cross_entropy_as_torch_weighs_it():
    task, batch = make(LABEL, loss__class_weights="1,2,4", loss__label_smoothing=0), batch_of(LABEL)
    outputs = outputs_for(task)
    loss, weight = task.loss(outputs, batch)
    expected = F.cross_entropy(outputs, batch["target"], weight=torch.tensor([1.0, 2, 4]))
    assert float(loss / weight) == pytest.approx(float(expected))


def test_labels_weigh_by_class_within_a_image():
    task, batch = make(LABELS, loss__class_weights="1,0,4", loss__label_smoothing=0), batch_of(LABELS)
    outputs = outputs_for(task)
    terms = F.binary_cross_entropy_with_logits(outputs, batch["target"], reduction="none")
    loss, weight = task.loss(outputs, batch)
    assert float(loss / weight) == pytest.approx(float((terms[:, 0] + 4 * terms[:, 2]).mean() / 5))


def test_positive_weights_as_torch_weighs_them():
    batch = batch_of(LABELS)
    present = batch["target"].sum(0)
    for given, expected in (("3,1,0.5", torch.tensor([3, 1, 0.5])), ("balanced", (11 - present) / present)):
        task = make(LABELS, loss__positive_weights=given, loss__label_smoothing=0.1)
        outputs = outputs_for(task)
        loss, weight = task.loss(outputs, batch)
        smoothed = batch["target"] * 0.9 + 0.05
        wanted = F.binary_cross_entropy_with_logits(outputs, smoothed, pos_weight=expected)
        assert float(loss / weight) == pytest.approx(float(wanted))


def test_balanced_positive_weights_are_capped():
    targets = np.zeros((1000, 2), np.float32)
    targets[0, 0] = 1
    targets[1:, 1] = 1
    task = make(LABELS, (("rare", "common"), targets), loss__positive_weights="balanced")
    assert task.positive.tolist() == pytest.approx([100, 0.01])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["2 weights for 3 classes", "ant, bee, cat"]),
        ("1,-2,3", ["-2.0 for bee"]),
        ("1,nan,3", ["nan for bee"]),
        ("inf,1,3", ["inf for ant"]),
        ("0,0,0", ["all weights are 0"]),
        ("balance", ["'balance'", "Did you mean balanced?"]),
        ("nowhere.json", ["nowhere.json", "no such file"]),
        ("1;2;3", ["1;2;3", "separated by commas"]),
    ],
)
@pytest.mark.parametrize(
    ("kind", "key"), [(LABEL, "class_weights"), (LABELS, "class_weights"), (LABELS, "positive_weights")]
)
def test_wrong_weights(kind, key, text, parts):
    refuses(f"loss.{key}", *parts, kind=kind, **{f"loss__{key}": text})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"ant": 1, "bee": 2}', ["no weight for cat"]),
        ('{"ant": 1, "bee": 2, "cat": 3, "bea": 1}', ["no class bea", "Did you mean bee"]),
        ('{"ant": 1, "bee": 2, "cat": "many"}', ["'many' for cat"]),
        ('{"ant": 1, "bee": 2, "cat": true}', ["True for cat"]),
        ("[1, 2, NaN]", ["nan for cat"]),
        ("[1, 2, 3, 4]", ["4 weights for 3 classes"]),
        ("7", ["no list and no mapping"]),
        ("", ["cannot be read"]),
        ("[1, 2", ["cannot be read"]),
    ],
)
def test_wrong_weights_in_a_file(tmp_path, text, parts):
    (tmp_path / "weights.json").write_text(text)
    refuses("loss.class_weights", "weights.json", *parts, loss__class_weights=str(tmp_path / "weights.json"))


def test_other_wrong_files(tmp_path):
    (tmp_path / "weights.yaml").write_text("a: [")
    refuses("cannot be read", loss__class_weights=str(tmp_path / "weights.yaml"))
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    refuses("cannot be read", loss__class_weights=str(tmp_path / "weights.bin"))
    refuses("no such file", loss__class_weights=str(tmp_path))


def test_weights_that_leave_nothing_to_learn_from():
    refuses(
        "loss.class_weights: all training samples", data=(CLASSES, np.array([0, 1, 1])), loss__class_weights="0,0,1"
    )


def test_weights_where_they_do_not_belong():
    refuses("loss.class_weights", "regression", "data.weight", kind=NUMBERS, loss__class_weights="balanced")
    refuses("loss.positive_weights", "regression", kind=NUMBERS, loss__positive_weights="balanced")
    refuses("loss.positive_weights", "multi-label", kind=LABEL, loss__positive_weights="balanced")
    for key in ("class_weights", "positive_weights"):
        settings = {f"loss__{key}": "balanced", "loss__name": "soft_f1"}
        refuses(f"loss.{key}", "soft_f1", "bce or focal", kind=LABELS, **settings)
