"""A trained model, ready to be evaluated or to predict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ddp_ft.checkpoint import restore_weights
from ddp_ft.contracts import Preprocess, Task
from ddp_ft.errors import UserError
from ddp_ft.models import create_from_spec
from ddp_ft.plan import is_convolutional, place, resolve_precision
from ddp_ft.tasks import restore_task

# Pictures per forward pass of an evaluation, and the unit in which the set is dealt to ranks. Fixed, so that
# the numbers do not depend on the machine.
EVAL_CHUNK = 64


@dataclass(frozen=True)
class Trained:
    """What best/ of a run folder holds, built and on its device."""

    module: nn.Module
    preprocess: Preprocess
    task: Task
    classes: tuple[str, ...]
    precision: str
    channels_last: bool


def describe_model(
    spec: Mapping[str, Any], preprocess: Preprocess, task: str, classes: tuple[str, ...], precision: str
) -> dict[str, Any]:
    """model.json: all that is needed to build the model again and to feed it."""
    return {
        **spec,
        "task": task,
        "classes": list(classes),
        "preprocessing": preprocess.to_mapping(),
        "precision": precision,
    }


def model_folder(path: Path) -> Path:
    """The folder with model.json that a run folder, or its best/, stands for; UserError if there is none."""
    for folder in (path, path / "best"):
        if (folder / "model.json").is_file():
            return folder
    what = "has no best/model.json yet" if path.is_dir() else "is not there"
    raise UserError(f"{path} {what}.", "Expected the run folder of a training run that was evaluated at least once.")


def load_trained(path: Path, device: torch.device) -> Trained:
    """Build the model of a run folder in evaluation mode. UserError if it is not there or does not fit."""
    folder = model_folder(path)
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
    except Exception as error:
        raise UserError(f"The model in {folder} cannot be read: {' '.join(str(error).split())}") from None
    module = create_from_spec(description)
    restore_weights(module, weights)
    channels_last = is_convolutional(module)
    classes = tuple(description["classes"])
    return Trained(
        place(module.eval(), device, channels_last),
        Preprocess.from_mapping(description["preprocessing"]),
        restore_task(description["task"], classes),
        classes,
        _same_precision(description["precision"], device),
        channels_last,
    )


def _same_precision(trained_in: str, device: torch.device) -> str:
    # Evaluated as it was trained where the device can, so that the numbers are those of the run.
    try:
        return resolve_precision(trained_in, device)
    except UserError:
        return "fp32"
