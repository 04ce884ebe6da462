"""Bootstrap intervals and paired tests: against the tasks' own metrics, against scipy, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from ddp_ft.evaluation.intervals import Interval, difference, holm, intervals, mcnemar
from ddp_ft.tasks.registry import restore_task
from ddp_ft.tasks.scored.classes import ScoredClasses
from ddp_ft.tasks.scored.labels import ScoredLabels
from ddp_ft.tasks.scored.numbers import ScoredNumbers

NAMES = tuple("abcdefg")


def evaluated(task_name, seed=0, samples=60):
    """A task, and a scored_set with classes that the set lacks, ties, and hits and misses."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"classes": NAMES}
    outputs = torch.randn(samples, len(NAMES), generator=generator).mul(8).round().div(8)
    if task_name == "single-label":
        target = torch.randint(0, 6, (samples,), generator=generator)
        outputs[torch.arange(samples), target] += 1
    elif task_name == "multi-label":
        target = (torch.rand(samples, len(NAMES), generator=generator) < 0.2).float()
        target[:, 6] = 0
        outputs += target
    else:
        target = torch.randn(samples, len(NAMES), generator=generator) + 1000
        target[:, 6] = 1000
        outputs, settings = target - 1000 + outputs, {**settings, "mean": [1000.0] * 7, "std": [1.0] * 7}
    task = restore_task(task_name, settings)
    predictions, records = task.predictions(outputs, {}), {"target": target, "weight": torch.ones(samples)}
    return task.scored_set(predictions, records), task.metrics(predictions, records)


@pytest.mark.parametrize("task", ["single-label", "multi-label", "regression"])
def test_values_are_those_of_the_task(task):
    scored_set, metrics = evaluated(task)
    found = {name: float(metric(np.ones((1, 60)))[0]) for name, metric in scored_set.statistics().items()}
    assert len(found) >= 4
    assert found == {name: pytest.approx(metrics[name], abs=2e-5) for name in found}


@pytest.mark.parametrize("task", ["single-label", "multi-label", "regression"])
def test_a_weight_of_two_is_a_sample_given_twice(task):
    scored_set, _ = evaluated(task)
    weights = np.random.default_rng(0).integers(0, 3, 60)
    rows = np.repeat(np.arange(60), weights)
    repeated = replace(scored_set, estimates=scored_set.estimates[rows], truth=scored_set.truth[rows])
    expected = {name: metric(np.ones((1, len(rows))))[0] for name, metric in repeated.statistics().items()}
    found = {name: metric(weights[None].astype(float))[0] for name, metric in scored_set.statistics().items()}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_scipy_gives_the_same_interval():
    scored_set, _ = evaluated("regression", samples=40)
    found = intervals(scored_set, count=4000)["rmse"]
    off = (scored_set.estimates - scored_set.truth) ** 2

    def rmse(rows):
        return np.sqrt(off[rows].mean(0)).mean()

    other = stats.bootstrap((np.arange(40),), rmse, n_resamples=4000, method="percentile", vectorized=False, rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval), abs=0.03 * (found.high))
    assert found == intervals(scored_set, count=4000)["rmse"] != intervals(scored_set, count=4000, seed=1)["rmse"]


def labelled(right, names=("a", "b")):
    """A scored_set of two classes that is right where `right` is True."""
    target = np.arange(len(right)) % 2
    said = np.where(right, target, 1 - target)
    return ScoredClasses(names, np.eye(2)[said] * 0.8 + 0.1, np.eye(2)[target])


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 200 sets of 80 samples with a true accuracy of 0.8 about 95 % of the intervals hold 0.8."""
    generator = np.random.default_rng(0)
    found = [intervals(labelled(generator.random(80) < 0.8), count=200)["accuracy"] for _ in range(200)]
    covered = np.mean([each.low <= 0.8 <= each.high for each in found])
    assert 0.90 <= covered <= 0.98


@pytest.mark.parametrize("right", [True, False])
def test_a_set_without_mistakes_does_not_prove_perfection(right):
    by_metric = intervals(labelled(np.full(40, right)))
    found = by_metric["accuracy"]
    exact = stats.binomtest(40 if right else 0, 40).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert "balanced_accuracy" not in by_metric and "macro_f1" not in by_metric  # no width is no interval


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 9), (9, 3), (5, 5), (900, 1100)])
def test_mcnemar_is_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_better_is_told_from_the_same():
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.7
    better = right | (generator.random(400) < 0.3)
    found = difference(labelled(right), labelled(better), "accuracy", True)
    assert found.value == pytest.approx(better.mean() - right.mean())
    assert 0 < found.interval.low < found.value < found.interval.high and found.p_value < 1e-6
    same = difference(labelled(right), labelled(right), "accuracy", True)
    assert (same.value, same.interval, same.p_value) == (0.0, Interval(0.0, 0.0), 1.0)


def test_less_error_is_better():
    truth = np.random.default_rng(0).normal(size=(200, 1))
    noise = np.random.default_rng(1).normal(size=(200, 1))
    near, far = (ScoredNumbers(("x",), truth + size * noise, truth) for size in (0.1, 0.5))
    found = difference(far, near, "rmse", False)
    assert found.value > 0.3 and found.interval.low > 0 and found.p_value == pytest.approx(2 / 1001)


def test_paired_intervals_are_seldom_wrong_about_equals():
    """Two models that are equally good: about 5 % of the tests may say otherwise, McNemar's a little fewer."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        pair = [labelled(generator.random(100) < 0.8) for _ in range(2)]
        wrong += difference(*pair, "accuracy", True, count=200).p_value < 0.05
    assert wrong / 200 <= 0.09


def test_what_would_take_too_long_has_no_interval():
    scores = np.zeros((400, 1000))
    found = ScoredLabels(tuple(map(str, range(1000))), scores, scores).statistics()
    assert "mAP" not in found and "exact_match" in found and math.isfinite(found["micro_f1"](np.ones((1, 400)))[0])
