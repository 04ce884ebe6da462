"""timm's models from elsewhere: hf-hub:OWNER/NAME, local-dir:FOLDER, whose config.json names the architecture."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.config.paths import expanded
from ddp_ft.errors import UserError, reason_of, typed_line
from ddp_ft.models.libraries.bare_timm import timm
from ddp_ft.models.libraries.base import is_source
from ddp_ft.models.libraries.downloads import hub_offline, hub_reachable, not_fetched

_LOCAL = "local-dir"


@dataclass(frozen=True)
class Source:
    """What config.json says: `name` in timm's form, the architecture, its arguments other than those that it has by
    itself, and timm's PretrainedCfg as a mapping, with the size that the network is built for."""

    name: str
    architecture: str
    arguments: dict[str, Any]
    config: dict[str, Any]


def source_of(name: str) -> Source | None:
    """The source that a model's name means; None for a model of timm's own. UserError if it cannot be read."""
    return _read(name) if is_source(name) else None


@lru_cache(maxsize=8)
def _read(name: str) -> Source:
    kind, _, place = name.partition(":")
    kind = kind.replace("_", "-")
    place = expanded(place) if kind == _LOCAL else place
    try:
        config, architecture, arguments = _local(place) if kind == _LOCAL else _remote(place, name)
        config = timm.models.PretrainedCfg(**config).to_dict()  # type: ignore[no-untyped-call]
        if (size := arguments.get("img_size")) is not None:
            config["input_size"] = (3, *([size, size] if isinstance(size, int) else size))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{name}: there is no {Path(place) / 'config.json'}.", "Expected a folder that timm, or export, wrote."
        ) from None
    except Exception as error:  # a file of others can be of any form
        reason = reason_of(error) if isinstance(error, OSError) else typed_line(error)
        raise UserError(f"{name}: its config.json is not timm's: {reason}.", "Expected one that timm wrote.") from None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{name} is a '{architecture}', which the installed timm does not have.", "Install its timm.")
    return Source(f"{kind}:{place}", architecture, _own_arguments(architecture, arguments), config)


def _own_arguments(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that are not the architecture's defaults; timm writes these too."""
    with torch.device("meta"):
        plain = timm.create_model(architecture)
    kept = {name: getattr(plain, name) for name in arguments if hasattr(plain, name)}
    known = {"in_chans": 3, **kept, "global_pool": _pooling(plain)}
    return {
        name: value
        for name, value in arguments.items()
        if name != "num_classes" and not (name in known and known[name] == value)
    }


def _pooling(module: nn.Module) -> str | None:
    # Most architectures keep it as a module, which names its kind, in the head or in themselves.
    head = getattr(module, "head", None)
    places = ((head, "global_pool"), (head, "pool_type"), (module, "global_pool"))
    found = [getattr(place, name, None) for place, name in places]
    kinds = [getattr(pool, "pool_type", pool) for pool in found]
    return next((kind for kind in kinds if isinstance(kind, str)), None)


def _local(place: str) -> Any:
    return timm.models._hub.load_model_config_from_path(Path(place))


def _remote(place: str, name: str) -> Any:
    online = hub_reachable()
    try:
        with hub_offline(not online):
            return timm.models.load_model_config_from_hf(place)
    except Exception as error:
        reason = reason_of(error) if online else "no connection to the Hugging Face hub, and not in its cache"
        raise not_fetched(name, reason) from error
