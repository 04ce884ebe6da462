"""`train --dry-run` without data and model: code of the user's own alone, tried on random numbers.

What is tried is imported part by part, so that a loss is checked little later than torch is imported.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ddp_ft.config.schema import HeadConfig, LossConfig, RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.errors import UserError
from ddp_ft.plugins import is_reference

# The outputs for which code is tried, by the kind of targets, and the features of a head that is tried alone.
NAMES = {"label": ("a", "b", "c"), "labels": ("a", "b", "c"), "numbers": ("a",)}
FEATURES = 64
IMAGE_SIZE = 224


def is_own_code_alone(config: RunConfig) -> bool:
    """Whether there is no data, and no model but one of the user's own, and something is of their own."""
    model = config.model.name or ""
    if config.data.path or (model and not is_reference(model)):
        return False
    named = (model, config.loss.name, config.head.name, config.eval.extra or "", config.augment.transform or "")
    return any(map(is_reference, named))


def trials(config: RunConfig) -> Iterator[str]:
    """Try it, piece by piece, and yield a line on each. UserError for the first that breaks its contract."""
    names = NAMES.get(TASKS[_task(config)].kinds[0])
    if names is None:
        raise UserError(f"Targets of --task {config.task} cannot be drawn at random.", "Give --data and --model.")
    if is_reference(config.loss.name) or config.eval.extra:
        yield from _task_trials(config, names)
    if config.model.name:
        yield _model_trial(config, config.model.name, len(names))
    elif is_reference(config.head.name):
        yield _head_trial(config.head, len(names))
    if config.augment.transform:
        yield _transform_trial(config.augment.transform, config.model.image_size or IMAGE_SIZE)


def _task(config: RunConfig) -> str:
    return config.task if config.task in TASKS else next(iter(TASKS))


def _task_trials(config: RunConfig, names: tuple[str, ...]) -> list[str]:
    import numpy as np

    from ddp_ft.tasks.base import SupervisedTask
    from ddp_ft.tasks.registry import task_class

    numbers = np.arange(len(names) * 2)
    kind = TASKS[_task(config)].kinds[0]
    targets: Any = {
        "label": numbers % len(names),
        "labels": np.eye(len(names), dtype=np.float32),
        "numbers": numbers[:, None].astype(np.float32),
    }[kind]
    own = is_reference(config.loss.name)
    alone = replace(config, loss=LossConfig(name=config.loss.name if own else "auto"))
    task = task_class(_task(config)).from_data(alone, names, targets)
    assert isinstance(task, SupervisedTask)
    lines = task.trials()
    task.higher_is_better(config.eval.metric or task.primary_metric)
    return lines


def _model_trial(config: RunConfig, name: str, outputs: int) -> str:
    from ddp_ft.models import build_model
    from ddp_ft.models.introspection import Trial
    from ddp_ft.models.rehearsal import rehearse

    model = config.model
    built = build_model(name, outputs, model.image_size, "none", config.head, model.drop_path)
    seen = rehearse(built.module, Trial(built.processor, built.call), name, both_modes=True, may_differ=False)
    height, width = built.processor.shape()
    count = sum(each.numel() for each in built.module.parameters())
    ends = f"ends with its head, {built.head_path}" if built.head_path else "does not end with its head"
    unused = f"; {len(seen.unused)} parameters have no part in the outputs" if seen.unused else ""
    return (
        f"{name}: called with images B x 3 x {height} x {width} float32, returned B x {outputs} outputs in training "
        f"and in evaluation; {count:,} parameters; it {ends}{unused}."
    )


def _head_trial(head: HeadConfig, outputs: int) -> str:
    from ddp_ft.models.head import own_head

    module = own_head(head.name, FEATURES, outputs)
    count = sum(each.numel() for each in module.parameters())
    given = f"features 2 x {FEATURES} float32"
    return f"{head.name}: called with {given}, returned 2 x {outputs} outputs; {count:,} parameters."


def _transform_trial(reference: str, size: int) -> str:
    import torch

    from ddp_ft.data.image.own_transform import check_own_transform

    image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return f"{reference}: {check_own_transform(reference, image)}."
