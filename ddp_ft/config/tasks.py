"""The tasks by name: the kinds of targets that each can be learned from, and the metric that decides."""

# Kinds as `contracts.Schema` has them. The first is the task's own: what it makes of a table's columns, and what `auto`
# takes it for.
KINDS_OF_TASK = {
    "single-label": ("label",),
    "multi-label": ("labels", "label"),
    "regression": ("numbers",),
}
# What decides which model is best where eval.metric does not say.
USUAL_METRIC = {"single-label": "accuracy", "multi-label": "mAP", "regression": "rmse"}


def fitting_tasks(kind: str) -> tuple[str, ...]:
    """What targets of that kind can be learned as; the first is what `auto` stands for."""
    fitting = [task for task, kinds in KINDS_OF_TASK.items() if kind in kinds]
    return tuple(sorted(fitting, key=lambda task: KINDS_OF_TASK[task][0] != kind))
