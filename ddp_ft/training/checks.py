"""Checks, before anything is trained, that the settings of a run go together."""

import json

import torch

from ddp_ft.config.forms import check_forms
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import NO_VIEWS, BuiltModel, Task
from ddp_ft.data.processors import processor_from
from ddp_ft.data.splits.record import Splits
from ddp_ft.errors import UserError
from ddp_ft.features.precompute import check_features
from ddp_ft.models.build import check_arguments
from ddp_ft.models.libraries.registry import get_library
from ddp_ft.tasks.registry import restore_task
from ddp_ft.training.gradients import check_penalties
from ddp_ft.training.optim import check_optimizer


def check_alone(config: RunConfig) -> None:
    """Raise UserError for settings that are wrong whatever the others are, and that the schema cannot check."""
    check_optimizer(config.optim.name)
    check_forms(config)
    if config.adapter.name != "none" and config.model.weights == "none":
        raise UserError(
            f"--adapter {config.adapter.name} learns beside pretrained weights, and --weights is none.",
            "Give --weights, or train all of them: leave --adapter out.",
        )


def check_restorable(built: BuiltModel, task: Task) -> None:
    """Raise UserError, before hours are spent, for what could not be loaded from model.json: something that was added
    to ddp_ft, but not to its tables of names."""
    described = json.loads(json.dumps({"input": built.processor.to_mapping(), "task": task.settings()}))
    processor_from(described["input"], built.processor.files().__getitem__)
    check_arguments(get_library(built.spec["library"]), built.spec["arguments"])
    restore_task(task.name, described["task"])


def check_together(config: RunConfig, built: BuiltModel, splits: Splits, device: torch.device) -> None:
    """Raise UserError for settings that are right alone and wrong together, or with the data."""
    if splits.train.kind != built.processor.kind:
        raise UserError(
            f"{config.data.path} has samples of the kind '{splits.train.kind}'; {config.model.name} takes "
            f"'{built.processor.kind}'.",
            "Choose another --model, or other data. Of a table, --set data.image=COLUMN names the column of images.",
        )
    built.processor.check(config, splits.schema.kind, device)
    if config.eval.tta != NO_VIEWS:
        built.processor.viewed(config.eval.tta)
    check_penalties(config)
    check_features(config, built)
