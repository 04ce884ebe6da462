"""Models of timm."""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ddp_ft.contracts import SAMPLE
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError, one_line, reason_of
from ddp_ft.models.libraries.bare_timm import timm
from ddp_ft.models.libraries.base import State, call_with_images, no_files, numbers_alone
from ddp_ft.models.libraries.downloads import hub_offline, hub_reachable, not_fetched, require_url
from ddp_ft.models.libraries.timm_sources import Source, source_of

_data: Any = timm.data  # untyped, and mypy does not see what it re-exports

# The filter's name in nearly all modules of timm; the other two are those of a few older ones.
_FILTER_NAMES = ("checkpoint_filter_fn", "_checkpoint_filter_fn", "_filter_fn")

ARGUMENTS = ("img_size",)
DROPOUT = ("drop_rate",)
DROP_PATH = ("drop_path_rate",)
CHANNELS = ("in_chans",)


def names() -> list[str]:
    """Return all models that are not deprecated, without and with their tags."""
    return sorted({*timm.list_models(), *timm.list_models(include_tags=True)})


def knows(name: str) -> bool:
    """Whether timm has the model, and the tag if there is one. UserError for a source that cannot be read."""
    if source_of(name):
        return True
    current = _current(name)
    base, tag = timm.models.split_model_name_tag(current)
    return timm.is_model(base) and (not tag or current in timm.models.get_arch_pretrained_cfgs(base))


def _current(name: str) -> str:
    # Resolved here and not by timm, which warns about each deprecated name.
    return timm.models.get_deprecated_models().get(name) or name


def input_sizes(name: str) -> dict[str, list[int]]:
    """Read them from timm's configurations of the model."""
    configs = timm.models.get_arch_pretrained_cfgs(name)
    default = timm.get_pretrained_cfg(name)
    sized = {tag.partition(".")[2]: config for tag, config in configs.items() if config.has_weights}
    return {tag: list(config.input_size[1:]) for tag, config in {"": default, **sized}.items() if config}


def parameters(name: str, may_build: bool) -> int | None:
    """Count them on the meta device, since timm has no table of them."""
    if not may_build:
        return None
    with torch.device("meta"):
        return sum(each.numel() for each in timm.create_model(name).parameters())


def spec_name(name: str, unit: str = SAMPLE) -> str:
    """Return the name with its tag, which decides the input size of many models, and whose default may change."""
    if source := source_of(name):
        tagged = f"{source.architecture}.{source.config.get('tag')}"
        return tagged if knows(tagged) else spec_name(source.architecture)
    config = timm.get_pretrained_cfg(_current(name))
    return f"{config.architecture}.{config.tag}" if config and config.tag else _current(name)


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    """Pass `img_size` only to the models whose shapes depend on it, those of timm's `fixed_input_size`."""
    if source := source_of(name):
        return _arguments_of(source, outputs, image_size)
    config = timm.get_pretrained_cfg(_current(name))
    sized = image_size is not None and config is not None and config.fixed_input_size
    return {"num_classes": outputs, **({"img_size": image_size} if sized else {})}


def _arguments_of(source: Source, outputs: int, image_size: int | None) -> dict[str, Any]:
    """Return its own arguments, as far as model.json may have them. UserError for others."""
    known, config = (*ARGUMENTS, *DROPOUT, *DROP_PATH), source.config
    if strange := [name for name in source.arguments if name not in known]:
        raise UserError(
            f"{source.name} needs {', '.join(strange)} for its architecture, {source.architecture}.",
            f"Only {', '.join(known)} can be given. Write a FILE.py:FACTORY that builds it, and use --weights FILE.",
        )
    sized = "img_size" in source.arguments or config["fixed_input_size"]
    size = {"img_size": image_size or list(config["input_size"][1:])} if sized else {}
    return {**source.arguments, "num_classes": outputs, **size}


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call timm.create_model."""
    module: nn.Module = timm.create_model(spec_name, **arguments)
    return module


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> ImageProcessor:
    """Return that of the model's own configuration, which does not depend on the file that is loaded."""
    source = source_of(name)
    return ImageProcessor(from_config(source.config if source else module.pretrained_cfg, image_size))


call = call_with_images
is_argument = numbers_alone
files = no_files


def from_config(pretrained_config: Any, image_size: int | None) -> Preprocess:
    """Return the preprocessing of a `pretrained_cfg`, with another size if one is given."""
    config = _data.resolve_data_config(pretrained_cfg=pretrained_config)
    height, width = config["input_size"][1:] if image_size is None else (image_size, image_size)
    return Preprocess(
        (int(height), int(width)), tuple(config["mean"]), tuple(config["std"]),
        config["interpolation"], float(config["crop_pct"]), config["crop_mode"],
    )  # fmt: skip


def pretrained(name: str) -> State:
    """Return the state of timm's own model with its own classifier and image size."""
    if source := source_of(name):
        return _pretrained_of(source, name)
    config = timm.get_pretrained_cfg(_current(name))
    if config is None or not config.has_weights:
        raise _no_weights(name)
    model = f"timm/{spec_name(name)}"
    online = not config.hf_hub_id or hub_reachable()
    if not config.hf_hub_id:
        require_url(str(config.url), model)
    try:
        with hub_offline(not online):
            module = timm.create_model(_current(name), pretrained=True)
    except Exception as error:
        reason = one_line(error) if online else "no connection to the Hugging Face hub, and not in its cache"
        raise not_fetched(model, reason) from error
    return dict(module.state_dict())


def _pretrained_of(source: Source, name: str) -> State:
    online = source.name.startswith("local-dir:") or hub_reachable()
    try:
        with hub_offline(not online):
            return dict(timm.create_model(source.name, pretrained=True).state_dict())
    except Exception as error:
        raise not_fetched(name, reason_of(error)) from error


def _no_weights(name: str) -> UserError:
    base, _ = timm.models.split_model_name_tag(_current(name))
    having = timm.list_pretrained(f"{base}.*")
    others = f" Of the same architecture with weights: {', '.join(having)}." if having else ""
    return UserError(f"timm has no pretrained weights for {name}.", f"Use --weights none or --weights FILE.{others}")


def cache_folder() -> str:
    """Return the cache of the Hugging Face hub, from which nearly all weights of timm come."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def adapt(module: nn.Module, state: State) -> State:
    """Apply the filter of the model's own module: it renames foreign formats and resamples positional tables.

    It is written for timm's own checkpoints; a file on which it fails stays as it is.
    """
    for filter_state in _filters(module):
        takes_model = len(inspect.signature(filter_state).parameters) > 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return dict(filter_state(dict(state), module) if takes_model else filter_state(dict(state)))
        except Exception:  # this filter is not for this file
            continue
    return state


def _filters(module: nn.Module) -> list[Callable[..., State]]:
    architecture = getattr(module, "pretrained_cfg", {}).get("architecture", "")
    homes = [timm.models.model_entrypoint(architecture).__module__] if timm.is_model(architecture) else []
    homes.append(type(module).__module__)
    found = [getattr(sys.modules[home], name, None) for home in homes for name in _FILTER_NAMES]
    return [candidate for candidate in found if candidate is not None]
