"""The tasks by name: where each one's class is, what it can be learned from, and the metric that decides."""

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """`code` is MODULE:CLASS, imported when asked for. `kinds` are those of targets (`contracts.Schema`); the first is
    the task's own: what it makes of a table's columns, and what `auto` takes it for. `metric` decides which model is
    best where eval.metric does not say."""

    code: str
    kinds: tuple[str, ...]
    metric: str


# A further task is one file and one line here.
TASKS = {
    "single-label": TaskEntry("ddp_ft.tasks.single_label:SingleLabel", ("label",), "accuracy"),
    "multi-label": TaskEntry("ddp_ft.tasks.multi_label:MultiLabel", ("labels", "label"), "mAP"),
    "regression": TaskEntry("ddp_ft.tasks.regression:Regression", ("numbers",), "rmse"),
}


def fitting_tasks(kind: str) -> tuple[str, ...]:
    """What targets of that kind can be learned as; the first is what `auto` stands for: of several tasks that call the
    kind their own, that which stands first in the table."""
    fitting = [task for task, entry in TASKS.items() if kind in entry.kinds]
    return tuple(sorted(fitting, key=lambda task: TASKS[task].kinds[0] != kind))
