"""What an export is made of, and what it is compared with."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ddp_ft.exporters.request import ExportRequest
from ddp_ft.inference.adapted_model import load_adapted
from ddp_ft.inference.trained_model import Trained, load_trained
from ddp_ft.run_folder.model_folder import ADAPTER, model_folder, read_description, restore_weights


@dataclass(frozen=True)
class Pair:
    """The `original` to compare with, in float32; the `model` to write, loaded anew, since the formats need the plain
    memory layout and tracing may change what a module holds; and its `description` for model.json."""

    original: Trained
    model: Trained
    description: dict[str, Any]


def load_pair(request: ExportRequest, device: torch.device) -> Pair:
    """The two models. With `merge` the original has its adapter beside the weights, and the model both merged anew.

    UserError as of `load_trained`, and of `load_adapted`.
    """
    original, model = (replace(load_trained(request.model, device), precision="fp32") for _ in range(2))
    if request.merge:
        adapted, weights = load_adapted(request.model, device)
        original = replace(adapted, precision="fp32")
        restore_weights(model.module, weights)
    stored = read_description(model_folder(request.model))
    return Pair(original, model, {name: value for name, value in stored.items() if name != ADAPTER})
