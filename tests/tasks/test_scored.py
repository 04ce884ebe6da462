"""What follows from predictions beside the truth, against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from ddp_ft.tasks.registry import restore_task
from ddp_ft.tasks.scored.base import most_confused
from ddp_ft.tasks.scored.classes import ScoredClasses
from ddp_ft.tasks.scored.labels import ScoredLabels
from ddp_ft.tasks.scored.numbers import ScoredNumbers
from ddp_ft.tasks.scored.ranking import ranking_curves

NAMES = ("a", "b", "c", "d")


def drawn(samples: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (samples,), generator=generator)  # no sample is a "d"
    outputs = torch.randn(samples, 4, generator=generator) + 1.5 * torch.eye(4)[target]
    return outputs, target


def single() -> ScoredClasses:
    outputs, target = drawn()
    task = restore_task("single-label", {"classes": NAMES})
    return task.scored_set({"logits": outputs}, {"target": target})


def test_single_label_against_scikit_learn():
    scored_set = single()
    said, true = scored_set.predicted, scored_set.target
    assert isinstance(scored_set, ScoredClasses)
    assert np.array_equal(scored_set.confusion(), metrics.confusion_matrix(true, said, labels=range(4)))
    wanted = metrics.precision_recall_fscore_support(true, said, labels=range(4), zero_division=np.nan)
    table = scored_set.class_table()
    for c, row in enumerate(table[:3]):
        assert [row["precision"], row["recall"], row["f1"], row["samples"]] == pytest.approx([w[c] for w in wanted])
    assert table[3]["recall"] is None and table[3]["samples"] == 0
    assert [name for name, *_ in scored_set.decisions(9)] == sorted(
        "abc", key=lambda name: (true == NAMES.index(name)).sum()
    )


def test_reliability_gives_the_calibration_error():
    scored_set = single()
    bins = scored_set.reliability()
    gap = float((np.abs(bins.confidence - bins.accuracy) * bins.samples).sum() / len(scored_set))
    probabilities = torch.from_numpy(scored_set.estimates)
    wanted = multiclass_calibration_error(probabilities, torch.from_numpy(scored_set.target), 4, n_bins=15)
    assert gap == pytest.approx(float(wanted), rel=1e-6) and bins.samples.sum() == len(scored_set)


def test_the_worst_come_first():
    scored_set = ScoredClasses(
        ("cat", "dog"), np.array([[0.9, 0.1], [0.3, 0.7], [0.45, 0.55], [0.51, 0.49]]), np.eye(2)[[1, 1, 0, 0]]
    )
    assert (
        scored_set.worst(9) == [0, 2] and scored_set.least_certain(9) == [3, 1] and scored_set.least_certain(1) == [3]
    )
    assert scored_set.caption(0) == [("predicted", "cat (90 %)"), ("true", "dog (10 %)")]
    assert scored_set.caption(1) == [("correct", "dog (70 %)")] and scored_set.correct_examples(9) == [3, 1]


def test_several_labels():
    scores = np.array([[0.9, 0.2], [0.6, 0.8], [0.1, 0.45]])
    scored_set = ScoredLabels(("sun", "rain"), scores, np.array([[1.0, 0], [1, 0], [0, 0]]))
    assert scored_set.correct.tolist() == [True, False, True] and scored_set.worst(9) == [1]
    assert scored_set.caption(1) == [("wrongly", "rain (80 %)"), ("correct", "sun (60 %)")]
    assert scored_set.caption(2) == [("correct", "no label"), ("least certain", "rain (45 %)")]
    assert scored_set.least_certain(9) == [2, 0]
    assert scored_set.class_table()[1] == {"name": "rain", "samples": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert scored_set.reliability().samples.sum() == 6


def test_labels_that_are_missed_are_named():
    scored_set = ScoredLabels(("line", "spot", "rash"), np.array([[0.38, 0.91, 0.2]]), np.array([[1.0, 0, np.nan]]))
    assert scored_set.caption(0) == [("missed", "line (38 %)"), ("wrongly", "spot (91 %)")]


def test_correct_examples_take_turns_between_classes():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.95])
    truth = np.eye(3)[[0, 0, 0, 1, 2]]
    estimates = np.where(truth > 0, confidence[:, None], (1 - confidence[:, None]) / 2)
    estimates[4] = [0.95, 0.0, 0.05]  # wrong, so it is no example
    scored_set = ScoredClasses(("a", "b", "c"), estimates, truth)
    assert scored_set.correct_examples(3) == [0, 3, 1] and scored_set.correct_examples(9) == [0, 3, 1, 2]


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_curves_against_scikit_learn(ties):
    scored_set = single()
    scores = scored_set.estimates.round(1) if ties else scored_set.estimates
    rounded = ScoredClasses(scored_set.names, scores, scored_set.truth)
    precision, rates = ranking_curves(rounded, 9)
    assert {each.name for each in rates} == {"a", "b", "c"}  # no sample is a "d"
    for curve, under in zip(precision, rates, strict=True):
        c = scored_set.names.index(curve.name)
        there, score = scored_set.truth[:, c], scores[:, c]
        assert curve.area == pytest.approx(metrics.average_precision_score(there, score))
        assert under.area == pytest.approx(metrics.roc_auc_score(there, score))
        assert (under.x[0], under.y[0], under.x[-1], under.y[-1], curve.x[-1]) == (0, 0, 1, 1, 1)


def test_outputs_that_are_no_numbers():
    outputs = torch.tensor([[float("nan"), 1.0], [2.0, 1.0]])
    task = restore_task("single-label", {"classes": ["a", "b"]})
    scored_set = task.scored_set({"logits": outputs}, {"target": torch.tensor([1, 0])})
    assert (
        scored_set.worst(5) == [0] and scored_set.reliability().samples.sum() == 2 and scored_set.confusion().sum() == 2
    )


def test_scoring_leaves_predictions_as_they_are():
    """They may be on their way to a file."""
    task = restore_task("regression", {"classes": ["age"], "mean": [40.0], "std": [10.0]})
    predictions = task.predictions(torch.tensor([[float("nan")], [1.0]]), {})
    before = predictions["values"].clone()
    assert task.scored_set(predictions, {"target": torch.tensor([[40.0], [20.0]])}).estimates[0, 0] == 0
    assert torch.equal(predictions["values"].isnan(), before.isnan())


def test_numbers():
    task = restore_task("regression", {"classes": ["age"], "mean": [40.0], "std": [10.0]})
    predictions = task.predictions(torch.tensor([[0.0], [1.0], [-1.0]]), {})
    scored_set = task.scored_set(predictions, {"target": torch.tensor([[40.0], [20.0], [31.0]])})
    assert isinstance(scored_set, ScoredNumbers) and scored_set.estimates[:, 0].tolist() == [40, 50, 30]
    assert scored_set.worst(2) == [1, 2] and scored_set.least_certain(5) == []
    assert scored_set.caption(1) == [("predicted", "50"), ("true", "20")]
    assert scored_set.correct_examples(2) == [0, 2]


def test_classes_that_are_confused_most():
    matrix = np.array([[5, 0, 3], [0, 9, 0], [1, 0, 5]])
    assert most_confused(matrix, 2) == [0, 2] and most_confused(matrix, 9) == [0, 1, 2]
