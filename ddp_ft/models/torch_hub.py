"""The download cache of torch.hub, in which torchvision, and timm for a few models, keep weights."""

from pathlib import Path
from urllib.parse import urlsplit

import torch

from ddp_ft.models.libraries.downloads import not_fetched, reachable


def cache_folder() -> str:
    """Where torch.hub keeps weights; TORCH_HOME moves it."""
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def file_name(url: str) -> str:
    """The name that torch.hub gives to the file of `url`."""
    return urlsplit(url).path.rpartition("/")[2]


def require_url(url: str, model: str) -> None:
    """UserError unless the file of `url` is in the cache or its host can be reached."""
    if not (Path(cache_folder()) / file_name(url)).exists() and not reachable(url):
        raise not_fetched(model, f"no connection to {urlsplit(url).hostname}")
