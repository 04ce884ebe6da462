"""A model by name, with a head and dropout of the wanted kind, and again from what model.json stores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError, one_line
from ddp_ft.models.head import LINEAR, HeadSpec, attach_head, check_head, is_mlp
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
from ddp_ft.models.libraries.registry import LIBRARIES, USER_FILES, full_name, get_library, resolve

# timm's and torchvision's modules of stochastic depth, with the attribute that holds the rate. By name, since many
# models carry a copy of their own.
_STOCHASTIC_DEPTH = {"DropPath": "drop_prob", "StochasticDepth": "p"}


@dataclass(frozen=True)
class Blueprint:
    """What a library's create function is called with.

    `given` is the model's name as the user wrote it, `inner` without the library's own, `name` what the create function
    takes.
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
        """With these arguments too."""
        return replace(self, arguments={**self.arguments, **more})


def known_names() -> list[str]:
    """The full names of all models of all libraries, with and without the tags of their weights."""
    return [full_name(key, name) for key in LIBRARIES for name in get_library(key).names()]


def build_model(
    name: str,
    outputs: int,
    image_size: int | None = None,
    weights: str = "pretrained",
    head: HeadConfig | None = None,
    drop_path: float | None = None,
) -> BuiltModel:
    """The model with random weights and a head of `outputs` values; None: linear, and the model's own rates.

    `weights` is what will be loaded into it; nothing is read, but the processor may depend on it.
    Raises UserError for a name that is unknown or means several models, and for an image size, a head or a rate
    that the model cannot take.
    """
    wanted = head or HeadConfig()
    check_head(wanted.name)
    key, inner = resolve(name)
    library = get_library(key)
    plan = Blueprint(name, key, inner, library.spec_name(inner), library.arguments(inner, outputs, image_size))
    if drop_path is not None:
        plan = with_drop_path(plan, drop_path)
    plan, dropout_at = _with_dropout(plan, wanted, image_size)
    module = _create(plan, image_size)
    other = plan.also(num_classes=outputs + 1).shapes()
    trial = Trial(library.processor(inner, module, image_size, weights), library.call)
    if image_size is not None and (reason := why_not(module, other, trial)):
        raise _wrong_size(name, image_size, reason)
    names = head_names(module, other)
    if not names:
        raise UserError(f"{name} does not follow num_classes: no parameter of it depends on that number.")
    site = find_head(module, other, names, trial)
    spec = {"library": key, "name": plan.name, "arguments": plan.arguments}
    if site is None:
        _check_without_site(name, wanted, dropout_at)
    if wanted.name != LINEAR or dropout_at != "":
        chosen = _choose_head(wanted, site, outputs, dropout_at)
        attach_head(module, chosen)
        spec["head"] = chosen.to_mapping()
    if wanted.name != LINEAR and site is not None:
        new = module.get_submodule(site.path)
        names = frozenset(f"{site.path}.{each}" for each, _ in new.named_parameters())
    return BuiltModel(module, trial.processor, trial.call, spec, names, site.path if site else None)


def _with_dropout(plan: Blueprint, head: HeadConfig, image_size: int | None) -> tuple[Blueprint, str | None]:
    """The dropout before the head as `with_head_dropout` sets it; an mlp has its own, and the library's is not kept."""
    if head.dropout is None:
        return plan, ""
    outputs = plan.arguments["num_classes"]
    library = get_library(plan.library)
    try:
        twin = plan.shapes()
        names = head_names(twin, plan.also(num_classes=outputs + 1).shapes())
        trial = Trial(library.processor(plan.inner, twin, image_size, "none"), library.call)
    except Exception:  # then the model itself cannot be built, and to build it says why
        return plan, ""
    if not names:
        return plan, ""
    return with_head_dropout(plan, twin, names, trial, 0.0 if is_mlp(head.name) else head.dropout)


def _check_without_site(name: str, head: HeadConfig, dropout_at: str | None) -> None:
    """What needs to know the head's place is refused where there is none."""
    asked = [
        *([f"head.name = {head.name}"] if head.name != LINEAR else []),
        *([f"head.dropout = {head.dropout}"] if dropout_at is None else []),
        *(["head.bias = prior"] if head.bias == "prior" else []),
    ]
    if asked:
        raise UserError(
            f"{name} cannot have {' and '.join(asked)}: the network does not end with one module as its head, "
            "but computes its outputs from that of several, or goes on behind it.",
            "Use the linear head without these settings, or another model.",
        )


def _choose_head(head: HeadConfig, site: HeadSite | None, outputs: int, dropout_at: str | None) -> HeadSpec:
    place = site or HeadSite("", 0, 2)  # a dropout of a network without a place for a head
    return HeadSpec(
        head.name, head.dropout, head.activation, head.norm, place.path, place.in_features, outputs,
        place.dimensions, place.path if dropout_at is None else dropout_at,
    )  # fmt: skip


def _create(plan: Blueprint, image_size: int | None) -> nn.Module:
    try:
        return plan.create()
    except Exception as error:
        if image_size is None or isinstance(error, UserError):
            raise
        raise _wrong_size(plan.given, image_size, one_line(error)) from error


def _wrong_size(name: str, image_size: int, reason: str) -> UserError:
    return UserError(
        f"{name} cannot take images of {image_size}x{image_size} pixels: {reason}.",
        "Choose another --image-size, or leave it out for the model's own.",
    )


def check_arguments(library: Library, arguments: Any) -> None:
    """UserError for arguments that no model.json of ours has for a model of that library.

    The file may be somebody else's, and there are arguments that make a library download files or open pickles (timm:
    checkpoint_path, pretrained_cfg), or that mean something to any other function that the name may point at.
    """
    given = arguments if isinstance(arguments, Mapping) else {"": arguments}
    known = ("num_classes", *library.ARGUMENTS, *library.DROPOUT, *library.DROP_PATH)
    strange = [name for name, value in given.items() if name not in known or not _is_number(value)]
    if strange:
        hint = f"Expected numbers for {', '.join(known)}."
        raise UserError(f"model.json has arguments that no model needs: {', '.join(map(repr, strange))}.", hint)


def _is_number(value: Any) -> bool:
    return all(isinstance(each, (int, float)) for each in (value if isinstance(value, list) else [value]))


def create_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """The module that `BuiltModel.spec` describes, its head included, with random weights.

    Raises UserError for an unknown library, for what the installed version of the library cannot build, and for
    arguments that could do more than to say how the model is built.
    """
    try:
        key, name, arguments = spec["library"], spec["name"], spec["arguments"]
    except KeyError as error:
        raise UserError(f"model.json has no {error}.", "Expected library, name and arguments.") from None
    library = get_library(key)
    check_arguments(library, arguments)
    model = full_name(key, name)
    if not library.knows(name):
        raise UserError(
            f"The installed {key} has no model '{name}'.",
            f"Install the {key} that the model was trained with.",
        )
    try:
        module = library.create(name, arguments)
        if "head" in spec:
            attach_head(module, HeadSpec.from_mapping(spec["head"]))
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{model} cannot be built as model.json says: {one_line(error)}.") from error


def with_drop_path(plan: Blueprint, rate: float) -> Blueprint:
    """With stochastic depth of that rate; UserError if the model takes none.

    Libraries let it rise with the depth, up to `rate` or nearly so in the last block.
    """
    library = get_library(plan.library)
    for argument in library.DROP_PATH:
        candidate = plan.also(**{argument: rate})
        try:
            module = candidate.shapes()
        except Exception:  # the model does not know the argument
            continue
        # Some take any argument and use none of it. A user's own modules may have any name, so there it is believed.
        if plan.library == USER_FILES or rate == 0 or max(depth_rates(module), default=0.0) > 0:
            return candidate
    if rate == 0 and not any(depth_rates(plan.shapes())):
        return plan
    raise UserError(
        f"{plan.given} takes no {' or '.join(library.DROP_PATH) or 'rate of it'}: its stochastic depth cannot be set.",
        "Leave model.drop_path out, or choose a model that has it.",
    )


def depth_rates(module: nn.Module) -> list[float]:
    """The rates of the modules of stochastic depth, in the order of the network."""
    parts = [(part, _STOCHASTIC_DEPTH.get(type(part).__name__)) for part in module.modules()]
    return [float(getattr(part, attribute, None) or 0.0) for part, attribute in parts if attribute]


def with_head_dropout(
    plan: Blueprint, shapes: nn.Module, head: frozenset[str], trial: Trial, rate: float
) -> tuple[Blueprint, str | None]:
    """The dropout right before the head set to `rate`: by an argument, or by that of an nn.Dropout there.

    `shapes` is the blueprint's module on the meta device; it is run in training mode.
    Gives the blueprint, and the name of the nn.Dropout whose rate is to be set; "" where none needs to be, None where
    the model has no dropout there. Raises UserError for a dropout before the head that nothing can change.
    """
    own = _dropouts(plan, shapes, head, trial)
    if _share(own) == _share([Dropout(rate)]):
        return plan, ""
    for argument in get_library(plan.library).DROPOUT:
        candidate = plan.also(**{argument: rate})
        try:
            module = candidate.shapes()
        except Exception:  # the model does not know the argument
            continue
        if _share(_dropouts(candidate, module, head, trial)) == _share([Dropout(rate)]):
            return candidate, ""
    named = [each.module for each in own if each.module][-1:]
    others = _share([each for each in own if each.module not in named])
    if others:
        raise UserError(
            f"{plan.given} has a dropout of its own before its head ({others:g}), which cannot be set from outside.",
            "Leave head.dropout out.",
        )
    return plan, named[0] if named else None


def _dropouts(plan: Blueprint, shapes: nn.Module, head: frozenset[str], trial: Trial) -> list[Dropout]:
    try:
        return dropouts_before(shapes, head, trial)
    except Exception:  # some operations know no meta device
        with torch.random.fork_rng(devices=[]):
            return dropouts_before(plan.create(), head, trial)


def _share(dropouts: list[Dropout]) -> float:
    """Of what all of them together let nothing through."""
    kept = 1.0
    for each in dropouts:
        kept *= 1 - each.rate
    return round(1 - kept, 9)
