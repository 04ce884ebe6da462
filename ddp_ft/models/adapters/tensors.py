"""The tensors of a model with an adapter: what learns, what it is on, and both in one."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ddp_ft.contracts import Adapter, BuiltModel
from ddp_ft.models.adapter_names import MAGNITUDE, A, B, is_adapter
from ddp_ft.models.adapters.layers import TRANSPOSED, lengths, low_rank, relative, scaling_of, weight_name


def digest_of_base(built: BuiltModel) -> str:
    """Return a hash of the names, shapes and values of the weights that an adapter is on; empty without one."""
    if built.adapter is None:
        return ""
    digest = hashlib.sha256()
    for name, tensor in built.module.state_dict().items():
        if name in built.base:
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
            digest.update(memoryview(plain.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def merged(weights: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Return the weights of the plain network that computes the same, by name, from those of the network with the
    adapter. They are the library's own names."""
    plain = {name: tensor for name, tensor in weights.items() if not is_adapter(name)}
    for path, kind in adapter.layers.items():
        name = f"{path}.{weight_name(kind)}"
        plain[name] = _merged(weights, path, kind, scaling_of(adapter.config)).contiguous()
    return plain


@torch.no_grad()
def _merged(weights: Mapping[str, Tensor], path: str, kind: str, scaling: float) -> Tensor:
    weight = weights[f"{path}.{weight_name(kind)}"]
    first, second = weights[f"{path}.{A}.weight"], weights[f"{path}.{B}.weight"]
    moved = weight + low_rank(first, second, kind, weight.shape) * scaling
    magnitude = weights.get(f"{path}.{MAGNITUDE}")
    if magnitude is None:
        return moved
    factor = relative(magnitude, lengths(moved, kind))
    return moved * (factor if kind == TRANSPOSED else factor.view(-1, *[1] * (weight.ndim - 1)))
