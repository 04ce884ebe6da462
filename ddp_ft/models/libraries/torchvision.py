"""Classification models of torchvision."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from torchvision import models as _torchvision_models
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from ddp_ft.contracts import SAMPLE
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import one_line
from ddp_ft.models.libraries.base import State, call_with_images, no_files, numbers_alone
from ddp_ft.models.libraries.downloads import hub_file_name, hub_folder, not_fetched, require_url

models: Any = _torchvision_models  # mypy does not see what it re-exports

DROPOUT = ("dropout",)
DROP_PATH = ("stochastic_depth_prob",)
# Ours, of `create`: torchvision's models take three.
CHANNELS = ("in_chans",)

# With auxiliary classifiers the forward pass would return several tensors. torchvision sets transform_input for its own
# weights, which need that preprocessing.
_INCEPTIONS = {"googlenet", "inception_v3"}
_INCEPTION_ARGUMENTS = {"aux_logits": False, "transform_input": True, "init_weights": True}
ARGUMENTS = ("image_size", "input_size", *_INCEPTION_ARGUMENTS)

# Names in torchvision's own files that its models rename as they load them (densenet.py, vision_transformer.py).
_RENAMES = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$"), r"\1\2"),
    (re.compile(r"^(.*\.mlp)\.linear_1\.(\w+)$"), r"\1.0.\2"),
    (re.compile(r"^(.*\.mlp)\.linear_2\.(\w+)$"), r"\1.3.\2"),
)


def names() -> list[str]:
    """Return all classification models, without and with the tags of their weights."""
    plain: list[str] = models.list_models(module=models)
    return sorted([*plain, *(f"{name}.{tag}" for name in plain for tag in _weights(name).__members__)])


def knows(name: str) -> bool:
    """Whether torchvision has the model, and the weights if a tag names them."""
    return name in names()


def _weights(base: str) -> Any:
    return models.get_model_weights(base)


def _member(name: str) -> Any:
    base, _, tag = name.partition(".")
    return _weights(base)[tag or "DEFAULT"]


def input_sizes(name: str) -> dict[str, list[int]]:
    """Read them from the transforms of the weights."""
    members = {"": _member(name), **{member.name: member for member in _weights(name)}}  # DEFAULT is one of the others
    return {tag: [member.transforms().crop_size[0]] * 2 for tag, member in members.items()}


def parameters(name: str, may_build: bool) -> int | None:
    """Read it from torchvision's table."""
    return int(_member(name).meta["num_params"])


def spec_name(name: str, unit: str = SAMPLE) -> str:
    """Return the name without the tag of the weights."""
    return name.partition(".")[0]


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    """Pass the image size, by default that of the weights, to the transformers that have a fixed one."""
    base = spec_name(name)
    given: dict[str, Any] = {"num_classes": outputs}
    if base in _INCEPTIONS:
        given |= _INCEPTION_ARGUMENTS
    if base.startswith("vit_"):
        given["image_size"] = image_size or _member(name).meta["min_size"][0]
    if base.startswith("maxvit") and image_size is not None:
        given["input_size"] = [image_size, image_size]
    return given


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call torchvision.models.get_model; with "in_chans" the first convolution takes so many channels."""
    channels = arguments.get("in_chans")
    given = {name: value for name, value in arguments.items() if name != "in_chans"}
    if channels is None:
        module: nn.Module = models.get_model(spec_name, **given)
        return module
    # It would pick three channels, and undo the normalising of photos.
    module = models.get_model(spec_name, **given | ({"transform_input": False} if spec_name in _INCEPTIONS else {}))
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
    # As torchvision initialises most of its convolutions.
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    return module


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> ImageProcessor:
    """Return the transforms of the weights: of the file by its name, else of the tag, else of the default ones."""
    transforms = (_member_of_file(name, weights) or _member(name)).transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    size = image_size or crop
    interpolation = transforms.interpolation.value
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return ImageProcessor(Preprocess((size, size), mean, std, interpolation, crop / resize))


call = call_with_images
is_argument = numbers_alone
files = no_files
cache_folder = hub_folder


def _member_of_file(name: str, weights: str) -> Any:
    members = _weights(spec_name(name)).__members__.values()
    return next((each for each in members if hub_file_name(each.url) == Path(weights).name), None)


def pretrained(name: str) -> State:
    """Return the state of torchvision's own model with its own classifier and image size."""
    member = _member(name)
    model = f"torchvision/{spec_name(name)}.{member.name}"
    require_url(member.url, model)
    try:
        # Built by torchvision and not read from the file alone: some models rename or drop tensors.
        module = models.get_model(spec_name(name), weights=member, progress=False)
    except Exception as error:
        where = Path(cache_folder()) / hub_file_name(member.url)
        raise not_fetched(model, f"{one_line(error)} ({where})") from error
    return dict(module.state_dict())


def adapt(module: nn.Module, state: State) -> State:
    """Rename old names, and resample the positional embedding of a vision transformer."""
    adapted = OrderedDict((_renamed(name), tensor) for name, tensor in state.items())
    if isinstance(module, VisionTransformer) and "encoder.pos_embedding" in adapted:
        with suppress(ValueError):  # no square grid: the matching will refuse a file of another architecture
            return dict(interpolate_embeddings(module.image_size, module.patch_size, adapted))
    return dict(adapted)


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name
