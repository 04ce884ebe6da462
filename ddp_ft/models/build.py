"""Build a model by name, with the requested head and dropout, and again from what model.json stores."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ddp_ft.config.forms import LINEAR, check_head, is_mlp
from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import SAMPLE, BuiltModel
from ddp_ft.errors import UserError, one_line
from ddp_ft.models.channels import with_channels
from ddp_ft.models.head import HeadSpec, attach_head
from ddp_ft.models.introspection import (
    Dropout,
    HeadSite,
    Trial,
    build_shapes,
    dropouts_before,
    find_head,
    head_names,
    why_not,
)
from ddp_ft.models.libraries.base import Library
from ddp_ft.models.libraries.registry import LIBRARIES, USER_FILES, call_of, full_name, get_library, resolve
from ddp_ft.plugins import digest_of

# timm's and torchvision's modules of stochastic depth, with the attribute that holds the rate. By name, since many
# models have a copy of their own.
_STOCHASTIC_DEPTH = {"DropPath": "drop_prob", "StochasticDepth": "p"}


@dataclass(frozen=True)
class Blueprint:
    """What a library's create function is called with.

    `given` is the model's name from the user, `inner` that without the library's, `name` what the function takes.
    """

    given: str
    library: str
    inner: str
    name: str
    arguments: dict[str, Any]

    def create(self) -> nn.Module:
        """The module, with random weights."""
        return get_library(self.library).create(self.name, self.arguments)

    def shapes(self) -> nn.Module:
        """The module on the meta device, if it can be built there."""
        return build_shapes(self.create)

    def also(self, **more: Any) -> "Blueprint":
        """Return it with these arguments too."""
        return replace(self, arguments={**self.arguments, **more})


@dataclass(frozen=True)
class Variant:
    """What is changed of an architecture: its rate of stochastic depth, and the channels of its input; None: as it
    is. `unit` is what its outputs are of."""

    drop_path: float | None = None
    channels: int | None = None
    unit: str = SAMPLE


def model_names() -> list[str]:
    """Return the full names of all models of all libraries, with and without the tags of their weights."""
    return [full_name(key, name) for key in LIBRARIES for name in get_library(key).names()]


def build_model(
    name: str,
    outputs: int,
    image_size: int | None = None,
    weights: str = "pretrained",
    head: HeadConfig | None = None,
    variant: Variant = Variant(),
) -> BuiltModel:
    """Return the model with random weights and a head of `outputs` values; None: linear, and the model's own rates.

    `weights` is what will be loaded into it; nothing is read, but the processor may depend on it.
    Raises UserError for a name that is unknown or means several models, and for an image size, a head, a rate or a
    number of channels that the model cannot take.
    """
    wanted = head or HeadConfig()
    check_head(wanted.name)
    key, inner = resolve(name)
    library = get_library(key)
    spec_name, arguments = library.spec_name(inner, variant.unit), library.arguments(inner, outputs, image_size)
    blueprint = Blueprint(name, key, inner, spec_name, arguments)
    blueprint = _varied(blueprint, variant)
    blueprint, dropout_at = _with_dropout(blueprint, wanted, image_size, variant.channels)
    module = _create(blueprint, image_size, variant.channels)
    other = blueprint.also(num_classes=outputs + 1).shapes()
    processor = with_channels(library.processor(inner, module, image_size, weights), variant.channels)
    trial = Trial(processor, call_of(key, outputs))
    # On the meta device first.
    trials = [(other, replace(trial, call=call_of(key, outputs + 1))), (module, trial)]
    if image_size is not None and (reason := why_not(trials)):
        raise _wrong_size(name, image_size, variant.channels, reason)
    names = head_names(module, other)
    if not names:
        raise UserError(f"{name} does not follow num_classes: no parameter of it depends on that number.")
    site = find_head(trials, names)
    spec = {"library": key, "name": blueprint.name, "arguments": blueprint.arguments}
    if key == USER_FILES and (code := digest_of(blueprint.name)):
        spec["code"] = code
    if site is None:
        _check_without_site(name, wanted, dropout_at)
    if wanted.name != LINEAR or dropout_at != "":
        chosen = _choose_head(wanted, site, outputs, dropout_at)
        attach_head(module, chosen)
        spec["head"] = asdict(chosen)
    if wanted.name != LINEAR and site is not None:
        names = frozenset(each for each, _ in module.get_submodule(site.path).named_parameters(site.path))
    path = site.path if site and variant.unit == SAMPLE else None  # features are of samples
    return BuiltModel(module, trial.processor, trial.call, spec, names, path)


def _varied(blueprint: Blueprint, variant: Variant) -> Blueprint:
    if variant.drop_path is not None:
        blueprint = with_drop_path(blueprint, variant.drop_path)
    if variant.channels in (None, 3):
        return blueprint
    for candidate, _ in _with_argument(blueprint, get_library(blueprint.library).CHANNELS, variant.channels):
        return candidate
    if blueprint.library == USER_FILES:  # it may take them by itself, which a forward pass will show
        return blueprint
    raise UserError(f"{blueprint.given} cannot be built for images of {variant.channels} channels.")


def _with_dropout(
    blueprint: Blueprint, head: HeadConfig, image_size: int | None, channels: int | None
) -> tuple[Blueprint, str | None]:
    """Set the dropout before the head by `with_head_dropout`; an mlp has its own in place of the library's."""
    if head.dropout is None:
        return blueprint, ""
    library = get_library(blueprint.library)
    try:
        shapes = blueprint.shapes()
        names = head_names(shapes, blueprint.also(num_classes=blueprint.arguments["num_classes"] + 1).shapes())
        call = call_of(blueprint.library, blueprint.arguments["num_classes"])
        trial = Trial(with_channels(library.processor(blueprint.inner, shapes, image_size, "none"), channels), call)
    except Exception:  # the model itself cannot be built, which raises the error with the reason
        return blueprint, ""
    if not names:
        return blueprint, ""
    return with_head_dropout(blueprint, shapes, names, trial, 0.0 if is_mlp(head.name) else head.dropout)


def _check_without_site(name: str, head: HeadConfig, dropout_at: str | None) -> None:
    """Refuse the settings that need one module as the head."""
    asked = [
        *([f"head.name = {head.name}"] if head.name != LINEAR else []),
        *([f"head.dropout = {head.dropout}"] if dropout_at is None else []),
        *(["head.bias = prior"] if head.bias == "prior" else []),
    ]
    if asked:
        raise UserError(
            f"{name} cannot have {' and '.join(asked)}: the network does not end with one module as its head, "
            "but computes its outputs from those of several, or continues after it.",
            "Use the linear head without these settings, or another model.",
        )


def _choose_head(head: HeadConfig, site: HeadSite | None, outputs: int, dropout_at: str | None) -> HeadSpec:
    place = site or HeadSite("", 0, 2)  # only a dropout: the network has no place for a head
    return HeadSpec(
        head.name, head.dropout, head.activation, head.norm, place.path, place.in_features, outputs,
        place.dimensions, place.path if dropout_at is None else dropout_at,
    )  # fmt: skip


def _create(blueprint: Blueprint, image_size: int | None, channels: int | None) -> nn.Module:
    try:
        return blueprint.create()
    except Exception as error:
        if image_size is None or isinstance(error, UserError):
            raise
        raise _wrong_size(blueprint.given, image_size, channels, one_line(error)) from error


def _wrong_size(name: str, image_size: int, channels: int | None, reason: str) -> UserError:
    size = f"{image_size}x{image_size} pixels"
    hint = "Choose another --image-size, or leave it out for the model's own."
    if channels not in (None, 3):
        size = f"{channels} channels and {size}"
        hint += " A function of your own is given data.channels if it has the parameter in_chans or in_channels."
    return UserError(f"{name} cannot take images of {size}: {reason}.", hint)


def check_arguments(library: Library, arguments: Any) -> None:
    """Raise UserError for arguments that ddp_ft never writes into model.json for a model of that library.

    The file may be from somebody else, and some arguments make a library download files or open pickles (timm:
    checkpoint_path, pretrained_cfg), or mean something to another function that the name may point at.
    """
    given = arguments if isinstance(arguments, Mapping) else {"": arguments}
    known = ("num_classes", *library.ARGUMENTS, *library.DROPOUT, *library.DROP_PATH, *library.CHANNELS)

    def is_number(value: Any) -> bool:
        return all(isinstance(each, (int, float)) for each in (value if isinstance(value, list) else [value]))

    numbers = {name for name, value in given.items() if name in known and is_number(value)}
    strange = [name for name, value in given.items() if name not in numbers and not library.is_argument(name, value)]
    if strange:
        hint = f"Expected numbers for {', '.join(known)}."
        raise UserError(f"model.json has arguments that no model needs: {', '.join(map(repr, strange))}.", hint)


def create_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """Return the module that `BuiltModel.spec` describes, its head included, with random weights.

    Raises UserError for an unknown library, for a model that its installed version cannot build, and for the arguments
    that `check_arguments` refuses.
    """
    try:
        key, name, arguments = spec["library"], spec["name"], spec["arguments"]
    except KeyError as error:
        raise UserError(f"model.json has no {error}.", "Expected library, name and arguments.") from None
    library = get_library(key)
    check_arguments(library, arguments)
    if not library.knows(name):
        hint = f"Install the {key} that the model was trained with."
        raise UserError(f"The installed {key} has no model '{name}'.", hint)
    try:
        module = library.create(name, arguments)
        if "head" in spec:
            attach_head(module, HeadSpec.from_mapping(spec["head"]))
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{full_name(key, name)} cannot be built from model.json: {one_line(error)}.") from error


def _with_argument(blueprint: Blueprint, names: tuple[str, ...], value: float) -> Iterator[tuple[Blueprint, nn.Module]]:
    """For each of the arguments that the model takes: the blueprint with it set to `value`, and its shapes."""
    for name in names:
        candidate = blueprint.also(**{name: value})
        try:
            shapes = candidate.shapes()
        except Exception:  # the model does not know the argument
            continue
        yield candidate, shapes


def with_drop_path(blueprint: Blueprint, rate: float) -> Blueprint:
    """Return the blueprint with that rate of stochastic depth; UserError if the model takes none.

    Libraries let it rise with the depth, up to about `rate` in the last block.
    """
    library = get_library(blueprint.library)
    for candidate, shapes in _with_argument(blueprint, library.DROP_PATH, rate):
        # Some take any argument and ignore it. A user's own modules may have any name, so there it is believed.
        if blueprint.library == USER_FILES or rate == 0 or max(depth_rates(shapes), default=0.0) > 0:
            return candidate
    if rate == 0 and not any(depth_rates(blueprint.shapes())):
        return blueprint
    names = " or ".join(library.DROP_PATH) or "rate of it"
    raise UserError(
        f"{blueprint.given} takes no {names}: its stochastic depth cannot be set.",
        "Leave model.drop_path out, or choose a model that has it.",
    )


def depth_rates(module: nn.Module) -> list[float]:
    """Return the rates of the modules of stochastic depth, in the order of the network."""
    parts = [(part, _STOCHASTIC_DEPTH.get(type(part).__name__)) for part in module.modules()]
    return [float(getattr(part, attribute, None) or 0.0) for part, attribute in parts if attribute]


def with_head_dropout(
    blueprint: Blueprint, shapes: nn.Module, head: frozenset[str], trial: Trial, rate: float
) -> tuple[Blueprint, str | None]:
    """Set the dropout right before the head to `rate`: by an argument, or by the rate of an nn.Dropout there.

    `shapes` is the blueprint's module on the meta device; it is run in training mode.
    Returns the blueprint, and the name of the nn.Dropout whose rate must be set ("": none; None: the model has no
    dropout there). Raises UserError for a dropout before the head that nothing can change.
    """
    own = _dropouts(blueprint, shapes, head, trial)
    wanted = _combined([Dropout(rate)])
    if _combined(own) == wanted:
        return blueprint, ""
    for candidate, module in _with_argument(blueprint, get_library(blueprint.library).DROPOUT, rate):
        if _combined(_dropouts(candidate, module, head, trial)) == wanted:
            return candidate, ""
    named = [each.module for each in own if each.module][-1:]
    others = _combined([each for each in own if each.module not in named])
    if others:
        raise UserError(
            f"{blueprint.given} has a dropout of its own before its head ({others:g}), which no argument sets.",
            "Leave head.dropout out.",
        )
    return blueprint, named[0] if named else None


def _dropouts(blueprint: Blueprint, shapes: nn.Module, head: frozenset[str], trial: Trial) -> list[Dropout]:
    try:
        return dropouts_before(shapes, head, trial)
    except Exception:  # some operations have no meta device
        with torch.random.fork_rng(devices=[]):
            return dropouts_before(blueprint.create(), head, trial)


def _combined(dropouts: list[Dropout]) -> float:
    """Combined drop probability of several dropouts in series."""
    return round(1 - math.prod(1 - each.rate for each in dropouts), 9)
