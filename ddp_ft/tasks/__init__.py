"""What can be learned. A new task is one new file and one line in TASKS."""

from ddp_ft.config import RunConfig
from ddp_ft.contracts import Schema, Task
from ddp_ft.tasks.single_label import SingleLabel

TASKS = {"single-label": SingleLabel}


def make_task(config: RunConfig, schema: Schema) -> Task:
    """The task that the configuration names, or that follows from the data: class folders mean one label each."""
    name = "single-label" if config.task == "auto" else config.task
    return TASKS[name](schema.classes, config.loss.label_smoothing)


def restore_task(name: str, classes: tuple[str, ...]) -> Task:
    """The task of a trained model, for evaluation and prediction."""
    return TASKS[name](classes)
