"""Which task follows from the data, and what is refused."""

import numpy as np
import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, Schema
from ddp_ft.errors import UserError
from ddp_ft.tasks.registry import describe_choice, restore_task, task_class
from tests.tasks.task_cases import CLASSES, DATA, make, metrics_of, refuses


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_its_line_says(name):
    task = task_class(name)
    assert (task.name, task.kinds, task.primary_metric) == (name, TASKS[name].kinds, TASKS[name].metric)


@pytest.mark.parametrize(
    ("kind", "asked", "name", "metric"),
    [
        (LABEL, "auto", "single-label", "accuracy"),
        (LABEL, "single-label", "single-label", "accuracy"),
        (LABEL, "multi-label", "multi-label", "mAP"),
        (LABELS, "auto", "multi-label", "mAP"),
        (LABELS, "multi-label", "multi-label", "mAP"),
        (NUMBERS, "auto", "regression", "rmse"),
        (NUMBERS, "regression", "regression", "rmse"),
    ],
)
def test_tasks(kind, asked, name, metric):
    task = make(kind, task=asked)
    assert (task.name, task.primary_metric, task.outputs) == (name, metric, len(DATA[kind][0]))
    assert task.higher_is_better(metric) == (metric != "rmse")
    shown = describe_choice(make_config({"task": asked}), Schema(kind, DATA[kind][0]))
    assert shown.startswith(name) and DATA[kind][0][0] in shown


@pytest.mark.parametrize(
    ("kind", "asked", "parts"),
    [
        (LABEL, "regression", ["one of 3 classes", "ant, bee, cat", "single-label, multi-label"]),
        (LABELS, "single-label", ["any number of 3 labels", "multi-label"]),
        (LABELS, "regression", ["any number of 3 labels"]),
        (NUMBERS, "single-label", ["numbers: age, weight", "regression", "data.target"]),
        (NUMBERS, "multi-label", ["numbers: age, weight"]),
    ],
)
def test_a_task_that_does_not_fit_the_data(kind, asked, parts):
    refuses(f"--task {asked}", *parts, kind=kind, task=asked)
    with pytest.raises(UserError):
        describe_choice(make_config({"task": asked}), Schema(kind, DATA[kind][0]))


def test_targets_that_cannot_be_learned():
    refuses("one class only", "ant", data=(("ant",), np.zeros(4, np.int64)))
    refuses("No training image has any label", kind=LABELS, data=(CLASSES, np.zeros((4, 3), np.float32)))


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ([1, np.nan, 2, np.nan], ["'weight'", "2 of 4", "number 1, nan"]),
        ([1, 2, np.inf, 0], ["'weight'", "1 of 4", "inf"]),
        ([3, 3, 3, 3], ["'weight' is 3 for all 4", "data.target"]),
    ],
)
def test_numbers_that_cannot_be_learned(column, parts):
    values = np.stack([np.arange(4), column], axis=1).astype(np.float32)
    refuses(*parts, kind=NUMBERS, data=(("age", "weight"), values))


def test_models_of_before_and_of_later():
    old = restore_task("single-label", {"classes": ["a", "b"]})
    assert metrics_of(old, torch.eye(2), {"target": torch.arange(2)})["loss"] == pytest.approx(0.31326)
    assert old.initial_bias() is None and restore_task("multi-label", {"classes": ["a", "b"]}).initial_bias() is None
    with pytest.raises(UserError, match="'telepathy', which is not known"):
        restore_task("telepathy", {})
