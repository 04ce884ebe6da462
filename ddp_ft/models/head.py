"""Heads in place of a library's own classifier, and the first weights of a new head."""

import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddp_ft.config.forms import LINEAR, is_mlp, mlp_widths
from ddp_ft.errors import UserError
from ddp_ft.plugins import load_object, running

# Small, so that the first predictions are nearly uniform and the first gradients do not disturb the pretrained layers;
# not zero, since a ReLU after the head (SqueezeNet) would then stay dead. The libraries' own initialisations are for
# training from scratch: timm's EfficientNets start at +-1/sqrt(outputs), a first loss of several times ln(outputs).
HEAD_STD = 0.01

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


@dataclass(frozen=True)
class HeadSpec:
    """A head that the library's create function does not build: what model.json holds under "head".

    `path` names the module that it replaces, `in_features` and `outputs` are of one sample, `dimensions` those of the
    replaced module's output. `dropout_at` names the nn.Dropout that gets the rate `dropout`, or the head before which
    it is applied; "": only in the mlp.
    """

    name: str
    dropout: float | None
    activation: str
    norm: str
    path: str
    in_features: int
    outputs: int
    dimensions: int
    dropout_at: str

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "HeadSpec":
        """Return the head of these fields; UserError for others."""
        try:
            return HeadSpec(**values)
        except TypeError:
            expected = ", ".join(each.name for each in dataclasses.fields(HeadSpec))
            raise UserError("The head in model.json cannot be read.", f"Expected {expected}.") from None


class NewHead(nn.Sequential):
    """A head in place of the library's own: takes features of any shape, returns outputs of that one's dimensions.

    An mlp has the layers linear1, norm1, activation1, dropout2, linear2, ...; a user's class is `own`.
    """

    def __init__(self, layers: Mapping[str, nn.Module], dimensions: int) -> None:
        super().__init__(OrderedDict(layers))
        self.dimensions = dimensions

    def forward(self, features: Tensor) -> Tensor:
        """Map B x in_features, or with further dimensions of size 1, to B x outputs with `dimensions` dimensions."""
        outputs = features.flatten(1)
        for layer in self:
            outputs = layer(outputs)
        return outputs.reshape(*outputs.shape, *[1] * (self.dimensions - outputs.ndim))


def _mlp_layers(spec: HeadSpec) -> dict[str, nn.Module]:
    """The layers by name; names do not depend on dropout or norm, so that weights fit whatever these are."""
    widths = [spec.in_features, *mlp_widths(spec.name), spec.outputs]
    layers: dict[str, nn.Module] = {}
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        if spec.dropout:
            layers[f"dropout{number}"] = nn.Dropout(spec.dropout)
        layers[f"linear{number}"] = nn.Linear(inputs, outputs)
        if number < len(widths) - 1:
            if spec.norm in _NORMS:
                layers[f"norm{number}"] = _NORMS[spec.norm](outputs)
            layers[f"activation{number}"] = _ACTIVATIONS[spec.activation]()
    return layers


def own_head(name: str, in_features: int, outputs: int) -> nn.Module:
    """The user's CLASS(in_features, outputs), tried once; UserError if it is not what is expected."""
    expected = "Expected a torch.nn.Module class, made as CLASS(in_features, outputs)."
    cls = load_object(name)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"{name} is not a class of torch.nn.Module.", expected)
    with running(f"{name}({in_features}, {outputs}) failed", expected):
        module: nn.Module = cls(in_features, outputs)
    weights = next(module.parameters(), None)
    if weights is None:
        raise UserError(f"{name} has no parameters to train.", expected)
    wanted = f"from 2 x {in_features} to 2 x {outputs}"
    with running(f"{name} failed {wanted}"), torch.no_grad():
        returned = module.eval()(torch.zeros(2, in_features, device=weights.device))
    module.train()
    if not isinstance(returned, Tensor) or returned.shape != (2, outputs):
        given = " x ".join(map(str, returned.shape)) if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(f"{name} returned {given}; expected {wanted}.", "A head returns one row for each sample.")
    return module


def _drop_input(rate: float, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Drop part of a head's input. A hook and no module, so that the names of the weights stay the library's."""
    return (F.dropout(inputs[0], rate, module.training),)


def attach_head(module: nn.Module, spec: HeadSpec) -> None:
    """Put the head of `spec` into the network, and dropout before it. Raises UserError for a user's class that fails.

    A linear head stays the library's own module.
    """
    if spec.name != LINEAR:
        layers = (
            _mlp_layers(spec) if is_mlp(spec.name) else {"own": own_head(spec.name, spec.in_features, spec.outputs)}
        )
        parent, _, name = spec.path.rpartition(".")
        setattr(module.get_submodule(parent), name, NewHead(layers, spec.dimensions))
    if not spec.dropout_at:
        return
    place = module.get_submodule(spec.dropout_at)
    rate = 0.0 if is_mlp(spec.name) or spec.dropout is None else spec.dropout
    if spec.dropout_at != spec.path:
        assert isinstance(place, nn.Dropout)
        place.p = rate
    else:
        place.register_forward_pre_hook(partial(_drop_input, rate))


@torch.no_grad()
def initialise_head(module: nn.Module, head: Collection[str], bias: Tensor | None = None) -> None:
    """Draw new weights for the head, whose parameters have the names `head`.

    A linear head and the last layer of an mlp: normal with deviation HEAD_STD; hidden layers of an mlp: normal with
    deviation sqrt(2 / inputs) (arXiv 1502.01852); all biases 0. A user's class keeps its own. `bias` (float, one per
    output) then replaces the last bias; UserError if there is none of that size.
    """
    new = next((part for part in module.modules() if isinstance(part, NewHead)), None)
    if new is None:
        for name, parameter in module.named_parameters():
            if name in head:
                nn.init.normal_(parameter, std=HEAD_STD) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    elif "own" not in dict(new.named_children()):
        _initialise_mlp(new)
    if bias is not None:
        last = _last_biases(module, head, new)
        if not last or any(each.shape != bias.shape for each in last):
            raise UserError(
                f"The head's last layer has no bias of {len(bias)} values that head.bias could set.",
                "Use head.bias = zero.",
            )
        for each in last:
            each.copy_(bias)


def _initialise_mlp(head: NewHead) -> None:
    layers = [part for part in head.children() if isinstance(part, nn.Linear)]
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.normal_(layers[-1].weight, std=HEAD_STD)
    for layer in layers:
        nn.init.zeros_(layer.bias)


def _last_biases(module: nn.Module, head: Collection[str], new: NewHead | None) -> list[Tensor]:
    """The bias of the new head's last layer, or all biases of the library's own, which may be several side by side."""
    if new is None:
        return [each for name, each in module.named_parameters() if name in head and name.endswith("bias")]
    layers = [part for part in new.modules() if next(part.parameters(recurse=False), None) is not None]
    last = getattr(layers[-1], "bias", None)
    return [last] if isinstance(last, Tensor) else []
