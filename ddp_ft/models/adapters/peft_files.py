"""What peft reads of a model with an adapter: adapter_config.json, and the names of adapter_model.safetensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import BuiltModel
from ddp_ft.models.adapter_names import MAGNITUDE, A, B, is_adapter, layer_of
from ddp_ft.models.adapters.layers import ATTENTION, CONV, TRANSPOSED, alpha_of

# In a folder of their own: beside the merged weights transformers would load the adapter too, and add it to them.
CONFIG, TENSORS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
_PREFIX = "base_model.model."


def peft_config(built: BuiltModel, base: str | None) -> dict[str, Any]:
    """adapter_config.json; `base` is the name of the model that the adapter is on, None if peft cannot know it."""
    assert built.adapter is not None
    config, layers = built.adapter.config, built.adapter.layers
    alpha = alpha_of(config)
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if built.spec["library"] == "transformers" else None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": config.dropout,
        # peft matches the whole path; a list of paths would mean all that end with one of them.
        "target_modules": "|".join(map(re.escape, layers)),
        "modules_to_save": _parts_of_head(built),
        "bias": "none",
        "fan_in_fan_out": TRANSPOSED in layers.values(),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _parts_of_head(built: BuiltModel) -> list[str]:
    if built.head_path:
        return [built.head_path]
    return sorted({name.rpartition(".")[0] for name in built.head})


def peft_names(built: BuiltModel) -> dict[str, str]:
    """{own name: peft's} of all that an adapter_model.safetensors holds: the adapter and the head."""
    parts = tuple(f"{part}." for part in _parts_of_head(built))
    names = [name for name in built.module.state_dict() if is_adapter(name) or name.startswith(parts)]
    return {name: _PREFIX + name for name in names}


def peft_tensors(built: BuiltModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors, from all weights by their own names."""
    assert built.adapter is not None
    plain = {own: weights[own].detach().cpu().contiguous().clone() for own in peft_names(built)}
    for own in plain:
        if own.endswith(MAGNITUDE) and built.adapter.layers[layer_of(own)] == CONV:  # in peft as wide as an output
            plain[own] = plain[own].view(1, -1, *[1] * (weights[f"{layer_of(own)}.weight"].ndim - 2))
    found = {theirs: plain[own] for own, theirs in peft_names(built).items()}
    for path in (path for path, kind in built.adapter.layers.items() if kind == ATTENTION):
        found |= _of_output_projection(path, found)
    return found


def _of_output_projection(path: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What peft expects of attention's output projection: an adapter that does nothing."""
    width = found[f"{_PREFIX}{path}.{A}.weight"].shape
    inner = f"{_PREFIX}{path}.base_layer.out_proj"
    return {f"{inner}.{A}.weight": torch.zeros(width), f"{inner}.{B}.weight": torch.zeros(width[::-1])}


def head_in(stored: Iterable[str]) -> frozenset[str]:
    """The own names of the head's tensors, from those of an adapter_model.safetensors."""
    return frozenset(name.removeprefix(_PREFIX) for name in stored if not is_adapter(name))


def own_tensors(built: BuiltModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse. KeyError for a tensor that is not there."""
    found = {own: stored[theirs] for own, theirs in peft_names(built).items()}
    return {own: tensor.flatten() if own.endswith(MAGNITUDE) else tensor for own, tensor in found.items()}
