"""What reports say of classes and of confidence, against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from ddp_ft.tasks.scored.classes import ScoredClasses
from ddp_ft.tasks.scored.labels import ScoredLabels

NAMES = ("a", "b", "c", "never there")


@pytest.fixture
def scored_set():
    generator = np.random.default_rng(0)
    scores = generator.dirichlet(np.ones(4) / 2, 200)
    return ScoredClasses(NAMES, scores, np.eye(4)[generator.integers(0, 3, 200)])


def test_class_table(scored_set):
    expected = precision_recall_fscore_support(scored_set.target, scored_set.predicted, zero_division=0)
    rows = scored_set.class_table()
    for name, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        assert [row[name] or 0 for row in rows] == pytest.approx(values.tolist())
    assert rows[3]["recall"] is None


def test_expected_calibration_error(scored_set):
    scores, target = torch.tensor(scored_set.estimates), torch.tensor(scored_set.target)
    expected = multiclass_calibration_error(scores, target, num_classes=4, n_bins=15)
    assert scored_set.reliability().calibration_error == pytest.approx(float(expected))


def test_no_threshold_is_better():
    generator = np.random.default_rng(0)
    truth = (generator.random((80, 3)) < 0.3).astype(float)
    truth[:, 2] = 0
    scores = np.round(np.clip(truth * 0.3 + generator.random((80, 3)) * 0.7, 0, 1), 1)  # with many ties
    first, second, nothing = ScoredLabels(NAMES[:3], scores, truth).thresholds()
    assert nothing is None
    for column, hint in enumerate((first, second)):
        tried = [f1_score(truth[:, column], scores[:, column] >= cut) for cut in np.arange(-0.05, 1.1, 0.1)]
        assert hint.f1 == pytest.approx(max(tried))
        assert f1_score(truth[:, column], scores[:, column] >= hint.threshold) == pytest.approx(hint.f1)
        assert hint.f1_at_half == pytest.approx(f1_score(truth[:, column], scores[:, column] >= 0.5))
