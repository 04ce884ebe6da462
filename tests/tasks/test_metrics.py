"""Metrics against scikit-learn, and where they are not defined."""

import numpy as np
import pytest
import torch

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from tests.tasks.task_cases import DATA, ONE_NUMBER, batch_of, estimates_of, make, metrics_of, outputs_for, row_of


def test_single_label_against_scikit_learn():
    from sklearn import metrics as sk

    task, batch = make(LABEL), batch_of(LABEL)
    outputs = outputs_for(task)
    found, target, p = metrics_of(task, outputs, batch), batch["target"], outputs.double().softmax(1)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(target, p, multi_class="ovr"))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(target, p.argmax(1)))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(target, p.argmax(1), average="macro"))
    assert "top5_accuracy" not in found


def test_calibration_by_hand():
    """Four answers of confidence 0.8, three of them right; four of 0.5 or so, all right."""
    task = make(LABEL)
    sure = torch.tensor([0.8, 0.1, 0.1]).log().repeat(4, 1)
    unsure = torch.tensor([0.25, 0.55, 0.2]).log().repeat(4, 1)
    batch = {"target": torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])}
    found = metrics_of(task, torch.cat([sure, unsure]), batch)
    assert found["ece"] == pytest.approx(0.5 * abs(0.8 - 0.75) + 0.5 * abs(0.55 - 1.0), abs=1e-6)


def test_classes_that_the_set_lacks_are_left_out():
    from sklearn import metrics as sk

    task = make(LABEL)
    outputs, target = outputs_for(task, 40), torch.arange(40) % 2
    found, p = metrics_of(task, outputs, {"target": target}), outputs.double().softmax(1)
    assert bool((p.argmax(1) == 2).any()), "the missing class must be guessed at times"
    expected = np.mean([sk.roc_auc_score(target == c, p[:, c]) for c in (0, 1)])
    assert found["auroc"] == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(p.argmax(1) == target)[target == c].double().mean() for c in (0, 1)])
    )
    assert metrics_of(task, outputs[:3], {"target": torch.zeros(3, dtype=torch.long)})["auroc"] == 0.5


def test_multi_label_against_scikit_learn():
    from sklearn import metrics as sk

    task, batch = make(LABELS), batch_of(LABELS)
    outputs = outputs_for(task)
    found, truth, p = metrics_of(task, outputs, batch), batch["target"].int(), outputs.double().sigmoid()
    decided = (p >= 0.5).int()
    assert found["mAP"] == pytest.approx(sk.average_precision_score(truth, p, average="macro"))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, average="macro"))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth, decided, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, decided, average="macro"))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(truth, decided))
    assert found["loss"] == pytest.approx(np.mean([sk.log_loss(truth[:, c], p[:, c]) for c in range(3)]), abs=1e-5)


def test_labels_that_the_set_lacks_are_left_out():
    task = make(LABELS)
    outputs, target = outputs_for(task), torch.from_numpy(DATA[LABELS][1].copy())
    target[:, 1] = 0
    narrow = make(LABELS, (("ant", "cat"), DATA[LABELS][1][:, [0, 2]]))
    found = metrics_of(task, outputs, {"target": target})
    expected = metrics_of(narrow, outputs[:, [0, 2]], {"target": target[:, [0, 2]]})
    assert (found["mAP"], found["auroc"]) == pytest.approx((expected["mAP"], expected["auroc"]))
    # A label that is only guessed has an F1 of 0; one that is not even guessed has none.
    assert bool((outputs[:, 1] >= 0).any())
    assert found["macro_f1"] == pytest.approx(expected["macro_f1"] * 2 / 3)
    unsaid = outputs.clone()
    unsaid[:, 1] = -1
    assert metrics_of(task, unsaid, {"target": target})["macro_f1"] == pytest.approx(expected["macro_f1"])
    nothing = metrics_of(task, outputs, {"target": torch.zeros_like(target)})
    assert (nothing["mAP"], nothing["auroc"]) == (0.0, 0.5)


def test_one_label_alone():
    from sklearn import metrics as sk

    data = (("ant",), DATA[LABELS][1][:, :1])
    task, batch = make(LABELS, data), batch_of(LABELS, data)
    outputs = outputs_for(task)
    truth, p = data[1][:, 0], outputs.sigmoid()[:, 0]
    assert metrics_of(task, outputs, batch)["mAP"] == pytest.approx(sk.average_precision_score(truth, p))


@pytest.mark.parametrize("data", [DATA[NUMBERS], ONE_NUMBER], ids=["two", "one"])
def test_regression_against_scikit_learn_in_the_targets_units(data):
    from sklearn import metrics as sk

    names, values = data
    task = make(NUMBERS, data)
    outputs = outputs_for(task)
    found = metrics_of(task, outputs, batch_of(NUMBERS, data))
    guesses = outputs.numpy() * values.std(0) + values.mean(0)
    np.testing.assert_allclose(estimates_of(task, outputs).numpy(), guesses, rtol=1e-5)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(values, guesses), rel=1e-5)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(values, guesses), rel=1e-5)
    assert found["r2"] == pytest.approx(sk.r2_score(values, guesses), rel=1e-5)
    own = {f"mae/{name}": sk.mean_absolute_error(values[:, c], guesses[:, c]) for c, name in enumerate(names)}
    given = {name: value for name, value in found.items() if "/" in name}
    assert given == (pytest.approx(own, rel=1e-5) if len(names) > 1 else {})


def test_r2_of_a_number_that_is_all_the_same():
    task = make(NUMBERS, ONE_NUMBER)
    assert metrics_of(task, torch.ones(3, 1), {"target": torch.full((3, 1), 50.0)})["r2"] == 0.0


def test_rows():
    assert row_of(make(LABEL), [0.2, 0.7, 0.1]) == ["bee", "0.700000", "0.200000", "0.700000", "0.100000"]
    labels = make(LABELS)
    assert list(labels.columns()) == ["classes", "prob_ant", "prob_bee", "prob_cat"]
    assert row_of(labels, [0.5, 0.49, 0.9]) == ["ant;cat", "0.500000", "0.490000", "0.900000"]
    assert row_of(labels, [0.1, 0.1, 0.1])[0] == ""
    numbers = make(NUMBERS)
    assert (list(numbers.columns()), row_of(numbers, [41.25, -0.1])) == (["age", "weight"], ["41.25", "-0.1"])
