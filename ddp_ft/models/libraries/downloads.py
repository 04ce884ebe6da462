"""Whether a download can succeed, known within seconds; and where torch.hub keeps what it downloads.

huggingface_hub 2.4 retries a name that does not resolve for 47 s (measured, without a network), and urllib
waits for minutes on a host whose packets are dropped, as on many compute nodes. So a connection is tried
first.
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
    """Whether a connection to the host of `url`, or to the proxy that stands before it, opens in time."""
    answers: queue.Queue[bool] = queue.Queue()
    # Looking up a name has no timeout of its own; a thread that is not waited for gives it one.
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
    """Whether the Hugging Face hub may be asked, and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


@contextmanager
def hub_offline(offline: bool) -> Iterator[None]:
    """While `offline`, huggingface_hub answers from its cache alone, at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def not_fetched(model: str, reason: str) -> UserError:
    """The one message for pretrained weights that could not be had."""
    return UserError(
        f"The pretrained weights of {model} could not be fetched: {reason}.",
        f"On a machine with a network, with the same home folder: ddp-ft fetch {model}\n"
        "Or give a file that you have: --weights FILE. To start from random weights: --weights none",
    )


def hub_folder() -> str:
    """Where torch.hub keeps weights; TORCH_HOME moves it."""
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def hub_file_name(url: str) -> str:
    """The name that torch.hub gives to the file of `url`."""
    return urlsplit(url).path.rpartition("/")[2]


def require_url(url: str, model: str) -> None:
    """UserError unless the file of `url` is in the cache or its host can be reached."""
    if not (Path(hub_folder()) / hub_file_name(url)).exists() and not reachable(url):
        raise not_fetched(model, f"no connection to {urlsplit(url).hostname}")
