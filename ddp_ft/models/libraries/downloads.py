"""Find out within seconds whether a download can succeed; and where torch.hub keeps its downloads.

huggingface_hub 2.4 retries a name that does not resolve for 47 s (measured, without a network), and urllib waits for
minutes on a host whose packets are dropped, as on many compute nodes. So a connection is tried first.
"""

import queue
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ddp_ft.errors import UserError

CONNECT_SECONDS = 4.0


def reachable(url: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Whether a connection to the host of `url`, or to its proxy, opens in time."""
    answers: queue.Queue[bool] = queue.Queue()
    # Looking up a name has no timeout of its own, so it is done in a thread that is not waited for.
    threading.Thread(target=lambda: answers.put(_connects(_address(url), seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


def _connects(address: tuple[str, int], seconds: float) -> bool:
    try:
        socket.create_connection(address, timeout=seconds).close()
    except OSError:
        return False
    return True


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def hub_reachable() -> bool:
    """Whether the Hugging Face hub may be used, and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


@contextmanager
def hub_offline(offline: bool) -> Iterator[None]:
    """In the block huggingface_hub reads only its cache if `offline`, without waiting."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def not_fetched(model: str, reason: str) -> UserError:
    """Return the error for pretrained weights that could not be fetched."""
    return UserError(
        f"The pretrained weights of {model} could not be fetched: {reason}.",
        f"On a machine with a network, with the same home folder: ddp-ft fetch {model}\n"
        "Or give a file that you have: --weights FILE. To start from random weights: --weights none",
    )


def hub_folder() -> str:
    """Return the folder in which torch.hub keeps weights; TORCH_HOME moves it."""
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def hub_file_name(url: str) -> str:
    """Return torch.hub's name for the file of `url`."""
    return urlsplit(url).path.rpartition("/")[2]


def require_url(url: str, model: str) -> None:
    """Raise UserError unless the file of `url` is in the cache or its host can be reached."""
    if not (Path(hub_folder()) / hub_file_name(url)).exists() and not reachable(url):
        raise not_fetched(model, f"no connection to {urlsplit(url).hostname}")
