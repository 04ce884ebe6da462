"""`train --dry-run` without data and model: code of the user's own alone, tried on random numbers.

What is tried is imported part by part, so that a loss is checked little later than torch is imported.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ddp_ft.cli.options import importing
from ddp_ft.config.paths import code_file
from ddp_ft.config.schema import LossConfig, RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.errors import EXIT_DONE, UserError
from ddp_ft.plugins import described, is_reference

# The outputs for which code is tried, by the kind of targets.
NAMES = {"label": ("a", "b", "c"), "labels": ("a", "b", "c"), "numbers": ("a",)}
IMAGE_SIZE = 224


def is_own_code_alone(config: RunConfig) -> bool:
    """Whether data or model is not given, the other one is none but the user's own, and something is of their own."""
    data, model = config.data.path, config.model.name or ""
    if (data and (model or not code_file(data))) or (model and not is_reference(model)):
        return False
    named = (
        str(data or ""),
        model,
        config.loss.name,
        config.head.name,
        config.eval.extra or "",
        config.augment.transform or "",
    )
    return any(map(is_reference, named))


def try_own_code(config: RunConfig, log: Callable[[str], None]) -> int:
    """Try it, log a line on each piece, and return the exit code. UserError for the first that breaks its contract."""
    with importing():
        import torch  # noqa: F401  (with garbage collection off, as it makes so many objects)
    for line in trials(config):
        log(line)
    return EXIT_DONE


def trials(config: RunConfig) -> Iterator[str]:
    """Try it, piece by piece, and yield a line on each. UserError for the first that breaks its contract."""
    names = NAMES.get(TASKS[_task(config)].kinds[0])
    if names is None:
        raise UserError(f"Targets of --task {config.task} cannot be drawn at random.", "Give --data and --model.")
    if is_reference(config.loss.name) or config.eval.extra:
        yield from _task_trials(config, names)
    if config.model.name:
        from ddp_ft.models.own_code import model_trial

        yield model_trial(config.model, config.head, len(names), config.data.channels)
    elif is_reference(config.head.name):
        from ddp_ft.models.own_code import head_trial

        yield head_trial(config.head.name, len(names))
    if config.data.path:
        yield _data_trial(config)
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


def _transform_trial(reference: str, size: int) -> str:
    import torch

    from ddp_ft.data.image.own_transform import check_own_transform

    image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return f"{reference}: {check_own_transform(reference, image)}."


def _data_trial(config: RunConfig) -> str:
    from ddp_ft.contracts import BadSample
    from ddp_ft.data.splits.open import open_splits
    from ddp_ft.tasks.registry import describe_choice

    splits = open_splits(config.data, config.seed, task=config.task)
    sizes = {"train": splits.train, "val": splits.val, "test": splits.test}
    counts = ", ".join(f"{len(source)} {role}" for role, source in sizes.items() if source is not None)
    drawn = "" if splits.record["given"] else ", where val is drawn from train"
    try:
        first = described(splits.train.read(0)["image"])
    except BadSample as error:
        raise UserError(f"{config.data.path}: {error}.", "It is the first sample for training.") from error
    return f"{config.data.path}: {counts}{drawn}; {describe_choice(config, splits.schema)}; first image {first}."
