"""RUN/provenance.json: the command, versions and hardware of each start of a run. Never part of the model."""

import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ddp_ft.distributed.environment import output_of, read_launch, usable_cores
from ddp_ft.distributed.world import World
from ddp_ft.errors import printable
from ddp_ft.files import read_sound_json, to_json, write_text
from ddp_ft.version import __version__, versions_of

FILE = "provenance.json"
LIBRARIES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow", "safetensors")
# If a run is requeued for weeks, its first start and the newest ones are kept.
MOST_STARTS = 200
HIDDEN = "***"
_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|access[-_]?key", re.IGNORECASE)
_USER = re.compile(r"(://)[^/@\s]+@")
# A file system that hangs must not hold up the start.
_GIT_SECONDS = 5


def record_start(run: Path, world: World) -> None:
    """Add this start to the list in the run folder; on rank 0. Raises OSError if it cannot be written."""
    starts = [*read_starts(run), describe_start(world)]
    if len(starts) > MOST_STARTS:
        starts = [starts[0], *starts[1 - MOST_STARTS :]]
    write_text(run / FILE, to_json(starts))


def read_starts(run: Path) -> list[dict[str, Any]]:
    """All recorded starts of a run, oldest first; none if the file is damaged."""
    return [each for each in read_sound_json(run / FILE, list) if isinstance(each, dict)]


def describe_start(world: World) -> dict[str, Any]:
    """This start: when (seconds since 1970), the command as words, versions, commit of the working folder, hardware."""
    launch = read_launch()
    return {
        "time": round(time.time(), 3),
        "command": command_words(sys.orig_argv),
        "launcher": "torchrun" if launch.distributed else "none",
        "world_size": world.size,
        # If nodes differ in their number of processes, as many as there would be if all were like the first.
        "nodes": -(-launch.world_size // launch.local_world_size),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        # torch's with what it was built for, such as +cu128
        "versions": {"ddp_ft": __version__, **versions_of(LIBRARIES), "torch": str(torch.__version__)},
        "git": git_state(Path.cwd()),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "gpus": _gpu_names(world),
    }


def command_words(words: Sequence[str]) -> list[str]:
    """A command as printable words, with the interpreter's name instead of its path, and without secrets.

    A secret is the value of an option or key with a name such as token, and the part before the @ of an address.
    """
    printed, hides = [], False
    for place, word in enumerate(words):
        word = printable(Path(word).name if place == 0 else word)
        secret = _SECRET.search(word)
        equals = word.find("=", secret.end()) if secret else -1
        if hides and not word.startswith("-"):
            printed.append(HIDDEN)
        elif equals >= 0:
            printed.append(f"{word[:equals]}={HIDDEN}")
        else:
            printed.append(_USER.sub(rf"\1{HIDDEN}@", word))
        hides = word.startswith("-") and secret is not None and equals < 0
    return printed


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that is checked out in a folder, and whether its tracked files differ from it; None outside of git."""
    # Without optional locks: reading must not write into the user's repository.
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    commit = output_of([*git, "rev-parse", "HEAD"], _GIT_SECONDS)
    if not commit:
        return None
    changes = output_of([*git, "status", "--porcelain", "--untracked-files=no"], _GIT_SECONDS)
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _cpu_name() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or os.uname().machine


def _gpu_names(world: World) -> list[str]:
    """The GPUs of this node, if the run computes on GPUs."""
    count = torch.cuda.device_count() if world.device.type == "cuda" else 0
    return [torch.cuda.get_device_name(number) for number in range(count)]
