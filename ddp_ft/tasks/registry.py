"""The tasks made: from data, or from what is stored of them. Their names are in `config/tasks.py`."""

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
    """What is asked of a task's class, before there is a task."""

    name: str
    words: TaskWords

    def from_data(self, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any], /) -> Task:
        """For training on samples with these targets; UserError for settings and targets that do not fit."""

    def from_settings(self, settings: Mapping[str, Any], /) -> Task:
        """For evaluation and prediction, from what a task's `settings` gave."""

    def unfitted(self, names: tuple[str, ...], /) -> Task:
        """As it is before there is a model, for reports of what there is already."""


def task_class(name: str) -> TaskClass:
    """The class of the task of that name. UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"The model is for a task '{name}', which is not known.", f"Known: {', '.join(TASKS)}.")
    module, _, found = TASKS[name].code.partition(":")
    return cast(TaskClass, getattr(importlib.import_module(module), found))


def make_task(config: RunConfig, schema: Schema, targets: NDArray[Any]) -> Task:
    """The task that the configuration names, or that follows from the data; `targets` are the training set's.

    Raises UserError for a task that the data has no targets for, for losses, weights and metrics that do not fit the
    task, and for code of the user's own that does not do what it is to.
    """
    task = task_class(_choose(config, schema)).from_data(config, schema.names, targets)
    task.check()
    return task


def outputs_of(config: RunConfig, schema: Schema) -> int:
    """How many outputs the head of a model for that task has. UserError as `make_task`."""
    return task_class(_choose(config, schema)).unfitted(schema.names).outputs


def restore_task(name: str, settings: Mapping[str, Any]) -> Task:
    """The task of a trained model, from what its `settings` gave, for evaluation and prediction.

    It has no smoothing and no weights: it is not for training. UserError for a task that is not known.
    """
    return task_class(name).from_settings(settings)


def restore_without_code(name: str, names: tuple[str, ...], settings: Mapping[str, Any]) -> Task:
    """The same without the loss and metric of the user's own, so that no code is run which others may have named.

    Without settings, the task with those names as it is before there is a model.
    """
    unfitted = task_class(name).unfitted(names)
    kept = {key: value for key, value in {**unfitted.settings(), **settings}.items() if key not in CODE_SETTINGS}
    return restore_task(name, kept)


def describe_choice(config: RunConfig, schema: Schema) -> str:
    """One line to print: the task, and what the data has. UserError as `make_task`."""
    return f"{_choose(config, schema)} ({_describe(schema)})"


def _choose(config: RunConfig, schema: Schema) -> str:
    fitting = fitting_tasks(schema.kind)
    if config.task == "auto":
        return fitting[0]
    if config.task not in fitting:
        raise UserError(
            f"--task {config.task} does not fit the data, which has {_describe(schema)}.",
            f"That fits: {', '.join(fitting)}. A table (--data FILE.csv) has the targets of its column data.target.",
        )
    return config.task


def _describe(schema: Schema) -> str:
    shown = ", ".join(map(printable, schema.names[:SHOWN_NAMES])) + (", ..." if len(schema.names) > SHOWN_NAMES else "")
    return f"{KINDS[schema.kind].describe(schema.names)}: {shown}"
