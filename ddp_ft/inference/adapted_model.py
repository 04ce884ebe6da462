"""A trained model as its pretrained weights and its adapter, apart: to merge both anew, and for its checkpoints, which
hold the adapter alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.schema import AdapterConfig
from ddp_ft.contracts import Adapter, BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import Trained, load_trained
from ddp_ft.models import create_from_spec, load_weights
from ddp_ft.models.adapters.inject import adapt_layers
from ddp_ft.models.adapters.peft_files import TENSORS, head_in, own_tensors
from ddp_ft.models.adapters.tensors import digest_of_base, merged
from ddp_ft.models.precision import place
from ddp_ft.run_folder.checkpoints import checkpoint_weights
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import (
    ADAPTER,
    WEIGHTS,
    model_folder,
    read_description,
    read_weights,
    restore_weights,
)

Weights = dict[str, Tensor]


def load_adapted(path: Path, device: torch.device) -> tuple[Trained, Weights]:
    """The model of a run whose network has its adapter beside the pretrained weights, in evaluation mode, and the
    weights of the plain network that both make together.

    UserError for a model without an adapter, and if the weights that this is on are not to be had.
    """
    folder, trained = model_folder(path), load_trained(path, device)
    built = _with_base(folder, trained)
    stored = {**read_weights(folder / WEIGHTS), **own_tensors(built, read_weights(folder / TENSORS))}
    learned = {name: tensor for name, tensor in stored.items() if name not in built.base}
    restore_weights(built.module, learned, built.base)
    module = place(built.module.eval(), device, trained.channels_last)
    assert built.adapter is not None
    return replace(trained, module=module), merged(module.state_dict(), built.adapter)


def load_for_average(run: Path, device: torch.device) -> tuple[Trained, Callable[[Path], Weights]]:
    """The model of a run, and what reads the weights that its checkpoints have for it."""
    return load_trained(run, device), checkpoint_reader(run)


def checkpoint_reader(run: Path) -> Callable[[Path], Weights]:
    """What reads the weights of a run's checkpoints as those of the plain network. UserError as of `load_adapted`."""
    folder = model_folder(run)
    if ADAPTER not in read_description(folder):
        return checkpoint_weights
    built = _with_base(folder, load_trained(run, torch.device("cpu")))
    base = {name: tensor for name, tensor in built.module.state_dict().items() if name in built.base}
    adapter = built.adapter
    assert adapter is not None
    return lambda checkpoint: merged({**base, **checkpoint_weights(checkpoint)}, adapter)


def _with_base(folder: Path, trained: Trained) -> BuiltModel:
    """The network with the pretrained weights of then, and an adapter that does nothing yet."""
    description = read_description(folder)
    if ADAPTER not in description:
        raise UserError(f"{folder} was trained without an adapter: there is nothing to merge.", "Leave --merge out.")
    adapter, base = _read(description[ADAPTER])
    config = RunFolder(folder.parent).stored_config()
    if config is None:
        raise UserError(
            f"{folder} is not in its run folder, whose config.yaml names the weights that the adapter is on.",
            f"Give the run folder. The merged weights are in {folder / WEIGHTS}.",
        )
    head = head_in(read_weights(folder / TENSORS))
    module = create_from_spec(description)
    built = BuiltModel(module, trained.processor, trained.call, description, head)
    load_weights(built, config.model.name or "", config.model.weights)
    names = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False)) - head
    adapt_layers(module, adapter.layers, adapter.config, seed=0)
    built = replace(built, adapter=adapter, base=names)
    if (now := digest_of_base(built)) != base:
        raise UserError(
            f"The adapter in {folder} is on other weights than --weights {config.model.weights} holds now (SHA-256 "
            f"{base[:12]} then, {now[:12]} now).",
            f"Bring back the file of then. The merged weights are in {folder / WEIGHTS}.",
        )
    return built


def _read(stored: Mapping[str, Any]) -> tuple[Adapter, str]:
    """The adapter in model.json, and the hash of what it is on. UserError for one that cannot be read."""
    try:
        values = {name: value for name, value in stored.items() if name not in ("layers", "base")}
        layers = {str(path): str(kind) for path, kind in stored["layers"].items()}
        return Adapter(AdapterConfig(**values), layers), str(stored["base"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The adapter in model.json cannot be read: {error}.") from None
