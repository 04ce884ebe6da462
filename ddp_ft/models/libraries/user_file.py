"""A model that the user's own function builds: FILE.py:FACTORY, called with `num_classes`."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError, one_line
from ddp_ft.models.libraries.base import State, call_with_images
from ddp_ft.plugins import is_reference, load_object

_SIZE_ARGUMENTS = ("image_size", "img_size")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# As timm and as torchvision call them.
ARGUMENTS = _SIZE_ARGUMENTS
DROPOUT = ("drop_rate", "dropout")
DROP_PATH = ("drop_path_rate", "stochastic_depth_prob")


def names() -> list[str]:
    """None that could be listed."""
    return []


def knows(name: str) -> bool:
    """Whether the name points at code."""
    return is_reference(name)


def input_sizes(name: str) -> dict[str, list[int]]:
    """None that are known without the user's file."""
    return {}


def parameters(name: str, may_build: bool) -> int | None:
    """Not known without the user's file."""
    return None


def spec_name(name: str) -> str:
    """As given; a relative path is read from where the command is run."""
    return name


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    """The image size is passed on to a factory that has a parameter for it."""
    given: dict[str, Any] = {"num_classes": outputs}
    factory = load_object(name)
    if image_size is not None and callable(factory):
        parameters = inspect.signature(factory).parameters
        given |= {key: image_size for key in _SIZE_ARGUMENTS if key in parameters}
    return given


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What the factory gives; UserError if it fails or gives something else than a module."""
    factory = load_object(spec_name)
    try:
        module = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        call = f"{spec_name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
        raise UserError(f"{call} failed: {type(error).__name__}: {one_line(error)}.") from error
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{spec_name} gave a {type(module).__name__}.",
            "Expected a function that returns a torch.nn.Module.",
        )
    return module


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> ImageProcessor:
    """The module's `pretrained_cfg` or `default_cfg`, as timm's models have it; else that of ImageNet."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if config is None:
        size = image_size or 224
        return ImageProcessor(Preprocess((size, size), _IMAGENET_MEAN, _IMAGENET_STD))
    from ddp_ft.models.libraries.timm import from_config

    return ImageProcessor(from_config(config if isinstance(config, dict) else config.to_dict(), image_size))


call = call_with_images


def pretrained(name: str) -> State:
    """None are known."""
    raise UserError(
        f"{name} has no pretrained weights known to ddp_ft.",
        "Use --weights FILE, or --weights none to start from what the function builds.",
    )


def cache_folder() -> str:
    """Nothing is ever downloaded."""
    return ""


def adapt(module: nn.Module, state: State) -> State:
    """As it is."""
    return state
