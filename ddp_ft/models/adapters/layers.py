"""Layers with an adapter (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

A layer stays the library's own object at its place, with its own names: only its class becomes a subclass of it, and
the small matrices are its children. So weights load, blocks are found and hooks stay as without an adapter.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ddp_ft.config.schema import AdapterConfig
from ddp_ft.data.rng import derive_seed

# Kinds of layers: what a layer multiplies by, and how.
LINEAR, TRANSPOSED, CONV, ATTENTION = "linear", "transposed", "conv", "attention"
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def scaling_of(config: AdapterConfig) -> float:
    """What the product of the matrices is multiplied by: alpha / rank, for rsLoRA alpha / its root (arXiv
    2312.03732)."""
    return alpha_of(config) / (math.sqrt(config.rank) if config.rslora else config.rank)


def alpha_of(config: AdapterConfig) -> float:
    """The adapter's alpha; `auto` is twice the rank."""
    return float(2 * config.rank if config.alpha is None else config.alpha)


def kind_of(layer: nn.Module) -> str:
    """The kind of a layer; empty for what is none."""
    if isinstance(layer, nn.MultiheadAttention):
        return ATTENTION
    if isinstance(layer, nn.Linear):
        return LINEAR
    if isinstance(layer, _CONVS):
        return CONV
    # By name, since transformers is not imported where it is not used.
    return TRANSPOSED if _is_of_transformers(layer) else ""


def _is_of_transformers(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"


def why_not(layer: nn.Module, dora: bool) -> str:
    """Why a layer that has a kind can take no adapter; empty if it can."""
    usual = next((each for each in (nn.Linear, *_CONVS, nn.MultiheadAttention) if isinstance(layer, each)), type(layer))
    if type(layer).forward is not usual.forward:
        return f"a {type(layer).__name__} computes in a way of its own"
    if isinstance(layer, nn.MultiheadAttention):
        if dora:
            return "DoRA is not defined for its joint projection"
        return "" if layer.in_proj_weight is not None and layer.bias_k is None else "its projections are separate"
    if isinstance(layer, _CONVS):
        if layer.groups > 1:
            return "its channels are in groups"
        if layer.padding_mode != "zeros" or any(each != 1 for each in layer.dilation):
            return "it is dilated, or its edges are not padded with zeros"
    return ""


def weight_name(kind: str) -> str:
    """The name in the layer of the weight that the adapter is on."""
    return "in_proj_weight" if kind == ATTENTION else "weight"


class Adapted(nn.Module):
    """A layer with an adapter: A maps to `rank` values, B back from them. B begins at 0, so that the network's outputs
    do not change. For DoRA `lora_magnitude_vector` has the length of each output's weights."""

    lora_A: nn.Module  # noqa: N815, peft's name
    lora_B: nn.Module  # noqa: N815
    lora_dropout: nn.Module | None
    lora_magnitude_vector: nn.Parameter | None
    scaling: float
    kind: str
    original: type[nn.Module]

    def update(self) -> Tensor:
        """What the adapter adds to the weight, in its shape; before DoRA's lengths."""
        matrices = cast(Tensor, self.lora_A.weight), cast(Tensor, self.lora_B.weight)
        return low_rank(*matrices, self.kind, self._weight().shape) * self.scaling

    def _weight(self) -> Tensor:
        name = weight_name(self.kind)
        # In a replica of DataParallel weights are no parameters.
        return cast(Tensor, vars(self)[name] if name in vars(self) else self._parameters[name])

    @torch.no_grad()
    def begin_magnitude(self) -> None:
        """Let DoRA's lengths be those of the weights, which were loaded after the adapter was made."""
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.copy_(self.lengths())

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """The lengths of each output's weights before DoRA's, which count as constants (section 4.3)."""
        weight = self._weight()
        with torch.autocast(weight.device.type, enabled=False):
            return lengths(weight + self.update(), self.kind)


class _Called(Adapted):
    """A layer that the network calls: the adapter's part is added to its output."""

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output and the adapter's."""
        dropped = values if self.lora_dropout is None else self.lora_dropout(values)
        added: Tensor = self.lora_B(self.lora_A(dropped)) * self.scaling
        output: Tensor = super().forward(values)
        if self.lora_magnitude_vector is None:
            return output + added
        plain: Tensor = output if dropped is values else super().forward(dropped)
        factor = self._by_output(relative(self.lora_magnitude_vector, self.lengths()))
        if self.bias is not None:
            plain = plain - self._by_output(cast(Tensor, self.bias))
        moved: Tensor = output + (factor - 1) * plain + factor * added
        return moved

    def _by_output(self, vector: Tensor) -> Tensor:
        """A value for each output, in a shape that fits the layer's outputs."""
        sides = self._weight().ndim - 2
        return vector.view(-1, *[1] * sides) if sides else vector


class _Attention(Adapted):
    """Attention whose joint projection to queries, keys and values has an adapter. Its output projection has none,
    since peft (0.21) counts one there twice."""

    @property
    def in_proj_weight(self) -> Tensor:
        """The weight with the adapter's part."""
        return self._weight() + self.update()

    @in_proj_weight.setter
    def in_proj_weight(self, weight: Tensor) -> None:
        vars(self)["in_proj_weight"] = weight


def low_rank(first: Tensor, second: Tensor, kind: str, shape: torch.Size) -> Tensor:
    """The product of the weights of A and B, in the shape of the layer's weight."""
    product: Tensor = second.flatten(1) @ first.flatten(1)
    return product.T if kind == TRANSPOSED else product.view(shape)


def lengths(weight: Tensor, kind: str) -> Tensor:
    """The length of the weights of each output."""
    norms: Tensor = torch.linalg.vector_norm(weight.T if kind == TRANSPOSED else weight.flatten(1), dim=1)
    return norms


def relative(magnitude: Tensor, length: Tensor) -> Tensor:
    """By what DoRA multiplies the weights of each output; 1 where these are all 0, and so have no direction."""
    return torch.where(length > 0, magnitude / length.clamp_min(torch.finfo(length.dtype).tiny), 1.0)


def _adapted_class(adapted: type[Adapted], original: type[nn.Module]) -> type[nn.Module]:
    """One class for each pair, so that equal layers have equal classes."""
    if (adapted, original) not in _CLASSES:
        _CLASSES[adapted, original] = type(f"Adapted{original.__name__}", (adapted, original), {"original": original})
    return _CLASSES[adapted, original]


def adapt(layer: Any, path: str, config: AdapterConfig, seed: int) -> str:
    """Give a layer its adapter; return its kind."""
    kind = kind_of(layer)
    form = _Attention if kind == ATTENTION else _Called
    weight = getattr(layer, weight_name(kind))
    layer.lora_A, layer.lora_B = _matrices(layer, kind, weight, config.rank)
    # Kaiming's, as peft and nn.Linear begin; from the seed and the path alone, so that it is the same everywhere.
    generator = torch.Generator().manual_seed(derive_seed(seed, *path.encode()))
    nn.init.kaiming_uniform_(layer.lora_A.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(layer.lora_B.weight)
    layer.lora_dropout = nn.Dropout(config.dropout) if config.dropout and form is _Called else None
    layer.scaling, layer.kind = scaling_of(config), kind
    magnitude = nn.Parameter(torch.ones(len(layer.lora_B.weight))) if config.dora else None
    layer.register_parameter("lora_magnitude_vector", magnitude)
    layer.__class__ = _adapted_class(form, type(layer))
    return kind


def _matrices(layer: Any, kind: str, weight: Tensor, rank: int) -> tuple[nn.Module, nn.Module]:
    make: Any = skip_init  # it draws nothing from the global generator
    if kind == CONV:
        made = next(each for each in _CONVS if isinstance(layer, each))
        size = (layer.kernel_size, layer.stride, layer.padding)
        return (
            make(made, layer.in_channels, rank, *size, bias=False),
            make(made, rank, layer.out_channels, 1, bias=False),
        )
    outputs, inputs = weight.shape[::-1] if kind == TRANSPOSED else weight.shape
    return make(nn.Linear, inputs, rank, bias=False), make(nn.Linear, rank, outputs, bias=False)


def remove(layer: Any) -> None:
    """Make an adapted layer what it was."""
    layer.__class__ = layer.original
    for name in ("lora_A", "lora_B", "lora_dropout", "lora_magnitude_vector"):
        delattr(layer, name)
    del layer.scaling, layer.kind
