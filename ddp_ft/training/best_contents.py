"""What best/ holds of a model: its weights as the library itself has them, what learned as peft has it, and how the
model is made again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from ddp_ft.config.paths import path_of
from ddp_ft.contracts import NO_VIEWS
from ddp_ft.files import to_json
from ddp_ft.models.adapters.peft_files import CONFIG, TENSORS, own_tensors, peft_config, peft_tensors
from ddp_ft.models.adapters.tensors import merged
from ddp_ft.models.libraries.registry import get_library
from ddp_ft.run_folder.model_folder import ADAPTER, VIEWS, WEIGHTS, describe_model, read_weights, restore_weights
from ddp_ft.training.run import Run

# Weights, model.json, and the other files by name.
Contents = tuple[Mapping[str, Tensor], dict[str, Any], dict[str, bytes]]


def contents_of(run: Run, weights: Mapping[str, Tensor]) -> Contents:
    """Return what best/ holds of the run's model with these weights."""
    model, plan = run.model, run.plan
    names = run.splits.schema.names
    description = describe_model(model.spec, model.processor, run.task, names, plan.precision, plan.channels_last)
    description |= {} if run.config.eval.tta == NO_VIEWS else {VIEWS: run.config.eval.tta}
    files = {**model.processor.files(), **get_library(model.spec["library"]).files(model.spec, names)}
    if model.adapter is None:
        return weights, description, files
    files |= {
        CONFIG: to_json(peft_config(model, _base_name(run))).encode(),
        TENSORS: save(peft_tensors(model, weights), metadata={"format": "pt"}),
    }
    return merged(weights, model.adapter), {**description, ADAPTER: _described(run)}, files


def _described(run: Run) -> dict[str, Any]:
    """The adapter for model.json, with a hash of what it is on. No path: the same weights are always the same bytes."""
    adapter = run.model.adapter
    assert adapter is not None
    return {**asdict(adapter.config), "layers": dict(adapter.layers), "base": run.plan.base}


def _base_name(run: Run) -> str | None:
    """What transformers' hub, and so peft, calls the model; None if it is not from there."""
    library, _, name = str(run.config.model.name).partition("/")
    is_of_hub = library == "transformers" and run.config.model.weights == "pretrained" and not path_of(name).exists()
    return name if is_of_hub else None


def restore_best(run: Run, module: nn.Module) -> None:
    """Copy the weights of best/ into the run's network: with an adapter only what learns, since the rest is there."""
    weights = read_weights(run.folder.best / WEIGHTS)
    if run.model.adapter is not None:
        weights |= own_tensors(run.model, read_weights(run.folder.best / TENSORS))
        weights = {name: tensor for name, tensor in weights.items() if name not in run.model.base}
    restore_weights(module, weights, run.model.base)
