"""The tasks by name: where each one's class is, what it can be learned from, and the metric that decides."""

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """`code` is MODULE:CLASS, imported when it is needed. `kinds` are the kinds of targets (`contracts.Schema`) that it
    can learn; the first is its own, for a table's columns and for `auto`. `metric` decides which model is best unless
    eval.metric does."""

    code: str
    kinds: tuple[str, ...]
    metric: str


# A further task is one file and one line here.
TASKS = {
    "single-label": TaskEntry("ddp_ft.tasks.single_label:SingleLabel", ("label",), "accuracy"),
    "multi-label": TaskEntry("ddp_ft.tasks.multi_label:MultiLabel", ("labels", "label"), "mAP"),
    "token-labels": TaskEntry("ddp_ft.tasks.token_labels:TokenLabels", ("tags",), "f1"),
    "regression": TaskEntry("ddp_ft.tasks.regression:Regression", ("numbers",), "rmse"),
}


def fitting_tasks(kind: str) -> tuple[str, ...]:
    """The tasks that can learn targets of that kind. The first is what `auto` means: of the tasks whose own kind it is,
    the first in the table."""
    fitting = [task for task, entry in TASKS.items() if kind in entry.kinds]
    return tuple(sorted(fitting, key=lambda task: TASKS[task].kinds[0] != kind))
