"""Which layers of a network get an adapter, and what learns then."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn

from ddp_ft.config.schema import AdapterConfig
from ddp_ft.contracts import Adapter, BuiltModel
from ddp_ft.errors import UserError, shortened
from ddp_ft.models.adapter_names import is_adapter, layer_of
from ddp_ft.models.adapters.layers import ATTENTION, CONV, Adapted, adapt, kind_of, remove, weight_name, why_not
from ddp_ft.models.freezing import Stage

ALL_LINEAR = "all-linear"
_HINT = (
    "Expected all-linear, or an expression that Python's re.search finds in the paths of layers, such as 'attn|mlp'; "
    "'ddp-ft models NAME --layers' lists them."
)


def with_adapter(built: BuiltModel, config: AdapterConfig, seed: int) -> BuiltModel:
    """Return the model with an adapter on the layers that `config.targets` means; the same if none is asked for.

    A is drawn from the seed and each layer's path alone. UserError if no layer can have one.
    """
    if config.name == "none":
        return built
    base = frozenset(name for name, _ in built.module.named_parameters(remove_duplicate=False)) - built.head
    chosen, left_out = _choose(built, config)
    layers = adapt_layers(built.module, chosen, config, seed)
    return replace(built, adapter=Adapter(config, layers, left_out), base=base)


def adapt_layers(module: nn.Module, paths: Iterable[str], config: AdapterConfig, seed: int) -> dict[str, str]:
    """Give the layers at these paths an adapter; return their kinds by path."""
    return {path: adapt(module.get_submodule(path), path, config, seed) for path in paths}


def _choose(built: BuiltModel, config: AdapterConfig) -> tuple[list[str], dict[str, str]]:
    """The paths of the layers to adapt, and those that are meant too but cannot be, with the reason."""
    meant = _expression("" if config.targets == ALL_LINEAR else config.targets)
    found, left_out, kinds = [], dict[str, str](), dict[str, str]()
    tied = _tied(built.module)
    for path, layer, kind in _layers(built):
        if meant.search(path):
            kinds[path] = kind
            if reason := why_not(layer, config.dora) or tied.get(f"{path}.{weight_name(kind)}", ""):
                left_out[path] = reason
            else:
                found.append(path)
    if config.targets == ALL_LINEAR:
        # A network without linear layers but its head is one of convolutions.
        found = [path for path in found if kinds[path] != CONV] or found
        left_out = {path: why for path, why in left_out.items() if kinds[path] != CONV}
    if not found:
        raise _nothing(config.targets, left_out)
    return found, left_out


def _layers(built: BuiltModel) -> Iterator[tuple[str, nn.Module, str]]:
    """All layers outside the head that have a kind, in order, but for attention's own output projection."""
    inside = f"{built.head_path}." if built.head_path is not None else None
    attention: tuple[str, ...] = ()
    for path, layer in built.module.named_modules():
        own = {f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)}
        is_head = path == built.head_path or (inside is not None and path.startswith(inside)) or own & built.head
        kind = kind_of(layer)
        if not kind or not path or is_head or path.startswith(attention):
            continue
        if kind == ATTENTION:
            attention = (*attention, f"{path}.")
        yield path, layer, kind


def _tied(module: nn.Module) -> dict[str, str]:
    """Parameters that several layers share, by each name: adapting one of these layers would leave the others."""
    names = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    shared = [each for each in names.values() if len(each) > 1]
    return {name: f"tied: its weight is that of {_others(name, each)} too" for each in shared for name in each}


def _others(name: str, names: Collection[str]) -> str:
    return shortened([each for each in names if each != name], 2)


def _expression(targets: str) -> re.Pattern[str]:
    try:
        return re.compile(targets)
    except re.error as error:
        raise UserError(f"adapter.targets: '{targets}' is no regular expression: {error}.", _HINT) from None


def _nothing(targets: str, left_out: Mapping[str, str]) -> UserError:
    reasons = shortened([f"{path} ({why})" for path, why in left_out.items()], 4)
    also = f" These cannot have one: {reasons}." if left_out else ""
    return UserError(f"adapter.targets = {targets} means no layer of this model that can have an adapter.{also}", _HINT)


def without_unreached(built: BuiltModel, unused: Collection[str]) -> BuiltModel:
    """Return the model without the adapters of layers that the forward pass does not call, as `rehearse` has found:
    some networks read a layer's weight and compute with it themselves."""
    paths = sorted({layer_of(name) for name in unused if is_adapter(name)})
    if built.adapter is None or not paths:
        return built
    for path in paths:
        remove(built.module.get_submodule(path))
    left_out = {**built.adapter.left_out, **dict.fromkeys(paths, "the network does not call it")}
    layers = {path: kind for path, kind in built.adapter.layers.items() if path not in left_out}
    if not layers:
        raise _nothing(built.adapter.config.targets, left_out)
    return replace(built, adapter=replace(built.adapter, layers=layers, left_out=left_out))


def adapted_stages(stages: list[Stage], built: BuiltModel) -> list[Stage]:
    """Return the stages of unfreezing for a model with an adapter: its base never learns, and the adapters of a layer
    learn where the layer itself would. UserError if none ever does."""
    if built.adapter is None:
        return stages
    names = [name for name, _ in built.module.named_parameters()]
    adapted = [_adapted(stage, built, names) for stage in stages]
    if not any(is_adapter(name) for name in names if name not in adapted[-1].frozen):
        raise UserError(
            f"--freeze {stages[-1].parts} leaves nothing of the adapter to learn.",
            "An adapter freezes the pretrained weights by itself: leave --freeze out, or leave --adapter out.",
        )
    return adapted


def _adapted(stage: Stage, built: BuiltModel, names: list[str]) -> Stage:
    assert built.adapter is not None
    weights = {f"{path}.{weight_name(kind)}": path for path, kind in built.adapter.layers.items()}
    held = {weights[name] for name in stage.frozen if name in weights}
    frozen = {name for name in names if is_adapter(name) and layer_of(name) in held}
    return replace(stage, frozen=frozenset((stage.frozen & built.head) | built.base.intersection(names) | frozen))


def begin(built: BuiltModel) -> None:
    """Do what an adapter needs once the weights are loaded."""
    for layer in built.module.modules():
        if isinstance(layer, Adapted):
            layer.begin_magnitude()
