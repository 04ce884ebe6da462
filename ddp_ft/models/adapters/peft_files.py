"""What peft reads of a model with an adapter: adapter_config.json, and the names of adapter_model.safetensors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddp_ft.contracts import BuiltModel
from ddp_ft.models.adapter_names import MAGNITUDE, is_adapter, layer_of
from ddp_ft.models.adapters.layers import ATTENTION, CONV, TRANSPOSED, alpha_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def peft_config(built: BuiltModel, base: str | None) -> dict[str, Any]:
    """adapter_config.json; `base` is the name of the model that the adapter is on, None if peft cannot know it."""
    assert built.adapter is not None
    config, layers = built.adapter.config, built.adapter.layers
    alpha = alpha_of(config)
    targets = [path for path in layers if not _is_inside_attention(path, layers)]
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if built.spec["library"] == "transformers" else None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": config.dropout,
        # peft matches the whole path; a list of paths would mean all that end with one of them.
        "target_modules": "|".join(map(re.escape, targets)),
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


def _is_inside_attention(path: str, layers: Mapping[str, str]) -> bool:
    return layers.get(path.rpartition(".")[0]) == ATTENTION


def peft_names(built: BuiltModel) -> dict[str, str]:
    """{own name: peft's} of all that an adapter_model.safetensors holds: the adapter and the head."""
    assert built.adapter is not None
    parts = tuple(f"{part}." for part in _parts_of_head(built))
    names = [name for name in built.module.state_dict() if is_adapter(name) or name.startswith(parts)]
    return {name: _PREFIX + _inner_name(name, built.adapter.layers) for name in names}


def _inner_name(name: str, layers: Mapping[str, str]) -> str:
    """In peft attention is wrapped, and its output projection is inside."""
    if is_adapter(name) and _is_inside_attention(path := layer_of(name), layers):
        outer, _, inner = path.rpartition(".")
        return f"{outer}.base_layer.{inner}{name.removeprefix(path)}"
    return name


def peft_tensors(built: BuiltModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors, from all weights by their own names."""
    assert built.adapter is not None
    plain = {own: weights[own].detach().cpu().contiguous().clone() for own in peft_names(built)}
    for own in plain:
        if own.endswith(MAGNITUDE) and built.adapter.layers[layer_of(own)] == CONV:  # in peft as wide as an output
            plain[own] = plain[own].view(1, -1, *[1] * (weights[f"{layer_of(own)}.weight"].ndim - 2))
    return {theirs: plain[own] for own, theirs in peft_names(built).items()}


def own_tensors(built: BuiltModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse. KeyError for a tensor that is not there."""
    found = {own: stored[theirs] for own, theirs in peft_names(built).items()}
    return {own: tensor.flatten() if own.endswith(MAGNITUDE) else tensor for own, tensor in found.items()}
