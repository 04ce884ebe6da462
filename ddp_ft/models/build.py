"""A model by name, with a head of the wanted kind and size, and again from what model.json stores."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError, one_line
from ddp_ft.models.blueprint import Blueprint, with_drop_path, with_head_dropout
from ddp_ft.models.head import LINEAR, HeadSpec, attach_head, check_head, is_mlp
from ddp_ft.models.introspection import HeadSite, find_head, head_names, why_not_size
from ddp_ft.models.libraries.base import LIBRARIES, full_name, get_library
from ddp_ft.models.names import resolve

# What the libraries' `arguments`, dropout and stochastic depth can give.
_SHAPES = ("num_classes", "img_size", "image_size", "input_size", "aux_logits", "transform_input", "init_weights")
_RATES = ("drop_rate", "dropout", "drop_path_rate", "stochastic_depth_prob")
_ARGUMENTS = frozenset([*_SHAPES, *_RATES])


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

    `weights` is what will be loaded into it; nothing is read, but the preprocessing may depend on it.
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
    if image_size is not None and (reason := why_not_size(module, other, (image_size, image_size))):
        raise _wrong_size(name, image_size, reason)
    names = head_names(module, other)
    if not names:
        raise UserError(f"{name} does not follow num_classes: no parameter of it depends on that number.")
    preprocess = library.preprocess(inner, module, image_size, weights)
    site = find_head(module, other, names, preprocess.size)
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
    return BuiltModel(module, preprocess, spec, names, site.path if site else None)


def _with_dropout(plan: Blueprint, head: HeadConfig, image_size: int | None) -> tuple[Blueprint, str | None]:
    """The dropout before the head as `with_head_dropout` sets it; an mlp has its own, and the library's is not kept."""
    if head.dropout is None:
        return plan, ""
    outputs = plan.arguments["num_classes"]
    library = get_library(plan.library)
    try:
        twin = plan.shapes()
        names = head_names(twin, plan.also(num_classes=outputs + 1).shapes())
        size = library.preprocess(plan.inner, twin, image_size, "none").size
    except Exception:  # then the model itself cannot be built, and to build it says why
        return plan, ""
    if not names:
        return plan, ""
    return with_head_dropout(plan, twin, names, size, 0.0 if is_mlp(head.name) else head.dropout)


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


def _check_arguments(arguments: Any) -> None:
    """UserError for arguments that no model.json of ours has.

    The file may be somebody else's, and there are arguments that make a library download files or open pickles (timm:
    checkpoint_path, pretrained_cfg), or that mean something to any other function that the name may point at.
    """
    given = arguments if isinstance(arguments, Mapping) else {"": arguments}
    strange = [name for name, value in given.items() if name not in _ARGUMENTS or not _is_number(value)]
    if strange:
        hint = f"Expected numbers for {', '.join(sorted(_ARGUMENTS))}."
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
    _check_arguments(arguments)
    library = get_library(key)
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
