"""A model by name, with a head of the wanted size, and again from what model.json stores."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.models.library import LIBRARIES, Library, full_name, get_library, one_line
from ddp_ft.models.names import resolve
from ddp_ft.models.probe import build_shapes, head_names, why_not_size


def known_names() -> list[str]:
    """The full names of all models of all libraries, with and without the tags of their weights."""
    return [full_name(key, name) for key in LIBRARIES for name in get_library(key).names()]


def build_model(name: str, outputs: int, image_size: int | None = None, weights: str = "pretrained") -> BuiltModel:
    """The model with random weights and a head of `outputs` values.

    `weights` is what will be loaded into it; nothing is read, but the preprocessing may depend on it.
    Raises UserError for a name that is unknown or means several models, and for an image size that the
    model cannot take.
    """
    key, inner = resolve(name)
    library = get_library(key)
    arguments = library.arguments(inner, outputs, image_size)
    module = _create(library, name, inner, arguments, image_size)
    other = build_shapes(lambda: library.create(library.spec_name(inner), {**arguments, "num_classes": outputs + 1}))
    if image_size is not None and (reason := why_not_size(module, other, (image_size, image_size))):
        raise _wrong_size(name, image_size, reason)
    head = head_names(module, other)
    if not head:
        raise UserError(f"{name} does not follow num_classes: no parameter of it depends on that number.")
    spec = {"library": key, "name": library.spec_name(inner), "arguments": arguments}
    return BuiltModel(module, library.preprocess(inner, module, image_size, weights), spec, head)


def _create(library: Library, name: str, inner: str, arguments: Mapping[str, Any], image_size: int | None) -> nn.Module:
    try:
        return library.create(library.spec_name(inner), arguments)
    except Exception as error:
        if image_size is None or isinstance(error, UserError):
            raise
        raise _wrong_size(name, image_size, one_line(error)) from error


def _wrong_size(name: str, image_size: int, reason: str) -> UserError:
    return UserError(
        f"{name} cannot take images of {image_size}x{image_size} pixels: {reason}.",
        "Choose another --image-size, or leave it out for the model's own.",
    )


def create_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """The module that `BuiltModel.spec` describes, with random weights.

    Raises UserError for an unknown library, and for what the installed version of the library cannot build.
    """
    try:
        key, name, arguments = spec["library"], spec["name"], spec["arguments"]
    except KeyError as error:
        raise UserError(f"model.json has no {error}.", "Expected library, name and arguments.") from None
    library = get_library(key)
    model = full_name(key, name)
    if not library.knows(name):
        raise UserError(
            f"The installed {key} has no model '{name}'.",
            f"Install the {key} that the model was trained with.",
        )
    try:
        return library.create(name, arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{model} cannot be built as model.json says: {one_line(error)}.") from error
