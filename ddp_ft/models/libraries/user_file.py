"""A model that the user's own function builds: FILE.py:FACTORY, called with `num_classes`.

It has no list of models, so `names`, `input_sizes`, `parameters` and `cache_folder`, which need one, are not here.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ddp_ft.contracts import SAMPLE
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError, shortened
from ddp_ft.models.libraries.base import State, call_with_images, no_files, numbers_alone
from ddp_ft.plugins import is_reference, load_object, running

_SIZE_ARGUMENTS = ("image_size", "img_size")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The names in timm and in torchvision.
ARGUMENTS = _SIZE_ARGUMENTS
DROPOUT = ("drop_rate", "dropout")
DROP_PATH = ("drop_path_rate", "stochastic_depth_prob")
CHANNELS = ("in_chans", "in_channels")


def knows(name: str) -> bool:
    """Whether the name is a reference to code."""
    return is_reference(name)


def spec_name(name: str, unit: str = SAMPLE) -> str:
    """Return it unchanged; a relative path starts at the current folder."""
    return name


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    """Pass the image size to a factory that has a parameter for it."""
    given: dict[str, Any] = {"num_classes": outputs}
    factory = load_object(name)
    if image_size is not None and callable(factory):
        parameters = inspect.signature(factory).parameters
        given |= {key: image_size for key in _SIZE_ARGUMENTS if key in parameters}
    return given


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what the factory returns; UserError if it fails, or returns no module or one of unknown sizes."""
    factory = load_object(spec_name)
    with running(f"{spec_name}({', '.join(f'{key}={value}' for key, value in arguments.items())}) failed"):
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        hint = "Expected a function that returns a torch.nn.Module."
        raise UserError(f"{spec_name} returned a {type(module).__name__}.", hint)
    if "_parameters" not in vars(module):
        hint = "Let its __init__ call super().__init__() first."
        raise UserError(f"{spec_name} returned a {type(module).__name__} that is no whole torch.nn.Module.", hint)
    named = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [name for name, each in named if is_lazy(each)]:
        hint = "Let the function run it once: module(torch.zeros(2, 3, 224, 224)); or give the sizes of its layers."
        raise UserError(f"{spec_name} returned lazy layers, whose sizes are not known yet: {shortened(lazy, 3)}.", hint)
    if others := [name for name, each in module.state_dict().items() if not isinstance(each, Tensor)]:
        hint = "Keep what get_extra_state returns in buffers, or leave it out: a model file holds tensors only."
        raise UserError(f"{spec_name} returned a module whose state has other things than tensors: {others[0]}.", hint)
    return module


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> ImageProcessor:
    """Return that of the module's `pretrained_cfg` or `default_cfg` (timm's names for it), else that of ImageNet."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if config is None:
        size = image_size or 224
        return ImageProcessor(Preprocess((size, size), _IMAGENET_MEAN, _IMAGENET_STD))
    from ddp_ft.models.libraries.timm import from_config

    return ImageProcessor(from_config(config if isinstance(config, dict) else config.to_dict(), image_size))


call = call_with_images
is_argument = numbers_alone
files = no_files


def pretrained(name: str) -> State:
    """Raise UserError: none are known."""
    raise UserError(
        f"{name} has no pretrained weights known to ddp_ft.",
        "Use --weights FILE, or --weights none to start from what the function builds.",
    )


def adapt(module: nn.Module, state: State) -> State:
    """Return it unchanged."""
    return state
