"""Making tasks, from data or from what is stored of them. Their names are in `config/tasks.py`."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from ddp_ft.config.schema import RunConfig
from ddp_ft.config.tasks import TASKS, fitting_tasks
from ddp_ft.contracts import Schema, Task, TaskWords
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, printable
from ddp_ft.tasks.base import CODE_SETTINGS

SHOWN_NAMES = 5


class TaskClass(Protocol):
    """What a task's class must have."""

    name: str
    words: TaskWords

    def from_data(self, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any], /) -> Task:
        """The task for training on samples with these targets; UserError for settings and targets that do not fit."""

    def from_settings(self, settings: Mapping[str, Any], /) -> Task:
        """The task for evaluation and prediction, from a task's `settings`."""

    def unfitted(self, names: tuple[str, ...], /) -> Task:
        """The task as it is before there is a model, for reports of an unfinished run."""


def task_class(name: str) -> TaskClass:
    """The class of a task by name. UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"The model is for a task '{name}', which is not known.", f"Known: {', '.join(TASKS)}.")
    module, _, found = TASKS[name].code.partition(":")
    return cast(TaskClass, getattr(importlib.import_module(module), found))


def make_task(config: RunConfig, schema: Schema, targets: NDArray[Any]) -> Task:
    """The configured task, or the one that follows from the data; `targets` are the training set's.

    Raises UserError for a task that the data has no targets for, for losses, weights and metrics that do not fit the
    task, and for code of the user's own that breaks its contract.
    """
    task = task_class(_choose(config, schema)).from_data(config, schema.names, targets)
    task.check()
    return task


def outputs_of(config: RunConfig, schema: Schema) -> tuple[int, str]:
    """The number of outputs of a head for that task, and the unit that they are of. UserError as `make_task`."""
    task = task_class(_choose(config, schema)).unfitted(schema.names)
    return task.outputs, task.unit


def restore_task(name: str, settings: Mapping[str, Any]) -> Task:
    """The task of a trained model from its `settings`, for evaluation and prediction: without smoothing and weights.

    UserError for a task that is not known.
    """
    return task_class(name).from_settings(settings)


def restore_without_code(name: str, names: tuple[str, ...], settings: Mapping[str, Any]) -> Task:
    """As `restore_task`, but without the user's own loss and metric, so that no code runs that others may have named.

    Without settings, the task with those names as it is before there is a model.
    """
    unfitted = task_class(name).unfitted(names)
    kept = {key: value for key, value in {**unfitted.settings(), **settings}.items() if key not in CODE_SETTINGS}
    return restore_task(name, kept)


def describe_choice(config: RunConfig, schema: Schema) -> str:
    """One line to print: the task, and the targets of the data. UserError as `make_task`."""
    return f"{_choose(config, schema)} ({_describe(schema)})"


def _choose(config: RunConfig, schema: Schema) -> str:
    fitting = fitting_tasks(schema.kind)
    if config.task == "auto":
        return fitting[0]
    if config.task not in fitting:
        hint = f"That fits: {', '.join(fitting)}. A table (--data FILE.csv) has the targets of its column data.target."
        raise UserError(f"--task {config.task} does not fit the data, which has {_describe(schema)}.", hint)
    return config.task


def _describe(schema: Schema) -> str:
    shown = ", ".join(map(printable, schema.names[:SHOWN_NAMES])) + (", ..." if len(schema.names) > SHOWN_NAMES else "")
    return f"{KINDS[schema.kind].describe(schema.names)}: {shown}"
