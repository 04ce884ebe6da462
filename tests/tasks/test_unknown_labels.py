"""Labels that are unknown (NaN): metrics and scored sets are those of the known ones, against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from ddp_ft.contracts import LABELS
from ddp_ft.errors import UserError
from tests.tasks.task_cases import code, make, metrics_of

GENERATOR = np.random.default_rng(3)
SAMPLES, NAMES = 60, ("ant", "bee", "cat")
TARGET = (GENERATOR.random((SAMPLES, 3)) < 0.4).astype(np.float32)
TARGET[GENERATOR.random((SAMPLES, 3)) < 0.3] = np.nan
TARGET[7] = np.nan
KNOWN, DATA = ~np.isnan(TARGET), (NAMES, TARGET)
OUTPUTS = torch.from_numpy(GENERATOR.normal(size=(SAMPLES, 3))).float()
RECORDS = {"target": torch.from_numpy(TARGET), "weight": torch.ones(SAMPLES)}


def over_classes(score, answers):
    return np.mean([score(TARGET[KNOWN[:, c], c], answers[KNOWN[:, c], c]) for c in range(3)])


def test_metrics_are_over_the_known_labels():
    found, p = metrics_of(make(LABELS, DATA), OUTPUTS, RECORDS), OUTPUTS.double().sigmoid().numpy()
    decided = (p >= 0.5).astype(float)
    assert found["mAP"] == pytest.approx(over_classes(sk.average_precision_score, p))
    assert found["auroc"] == pytest.approx(over_classes(sk.roc_auc_score, p))
    assert found["macro_f1"] == pytest.approx(over_classes(sk.f1_score, decided))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(TARGET[KNOWN], decided[KNOWN]))
    judged = KNOWN.any(1)
    assert found["exact_match"] == pytest.approx(((decided == TARGET) | ~KNOWN).all(1)[judged].mean())


def test_a_scored_set_answers_by_the_known_labels():
    task = make(LABELS, DATA)
    scored, found = task.scored_set({"logits": OUTPUTS}, RECORDS), metrics_of(task, OUTPUTS, RECORDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NaN would show
        once = {name: float(statistic(np.ones((1, SAMPLES)))[0]) for name, statistic in scored.statistics().items()}
        table, reliability = scored.class_table(), scored.reliability()
    assert once == pytest.approx({name: found[name] for name in once}, rel=1e-6)
    assert [row["samples"] for row in table] == np.nansum(TARGET, 0).tolist()
    assert np.mean([row["f1"] for row in table]) == pytest.approx(found["macro_f1"])
    assert reliability.samples.sum() == KNOWN.sum()
    assert all(np.isfinite(hint.f1) for hint in scored.thresholds())
    assert [len(scores) for _, _, scores in scored.decisions(3)] == [
        KNOWN[:, c].sum() for c in (NAMES.index(name) for name, *_ in scored.decisions(3))
    ]
    assert np.isfinite(scored.error).all() and 7 not in scored.worst(SAMPLES)
    assert scored.has_targets(TARGET)


def test_weights_and_bias_count_the_known_ones():
    task = make(LABELS, DATA, loss__positive_weights="balanced")
    present = np.nansum(TARGET, 0)
    assert task.positive.tolist() == pytest.approx(((KNOWN.sum(0) - present) / present).tolist())
    assert task.initial_bias().sigmoid().tolist() == pytest.approx(((present + 1) / (KNOWN.sum(0) + 2)).tolist())


def test_code_of_the_users_own_must_know_of_them(tmp_path):
    naive = "def L(o, t): return F.binary_cross_entropy_with_logits(o, t, reduction='none').mean(1)"
    with pytest.raises(UserError, match="finite"):
        make(LABELS, DATA, loss__name=code(tmp_path, naive) + ":L")
    aware = naive.replace("(o, t, ", "(o, t.nan_to_num(), ")
    make(LABELS, DATA, loss__name=code(tmp_path, aware, "aware.py") + ":L")
