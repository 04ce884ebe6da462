"""RUN/provenance.json: with what and on what each start of a run was made. Never part of the model."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddp_ft.distributed.environment import read_launch, usable_cores
from ddp_ft.distributed.world import World
from ddp_ft.errors import printable
from ddp_ft.run_folder.files import to_json, write_text
from ddp_ft.version import __version__

FILE = "provenance.json"
LIBRARIES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow", "safetensors")
# Of a run that is requeued for weeks the first start and the newest ones are kept.
MOST_STARTS = 200
HIDDEN = "***"
_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|access[-_]?key", re.IGNORECASE)
_USER = re.compile(r"(://)[^/@\s]+@")
# A file system that hangs must not hold up the start.
_GIT_SECONDS = 5


def record_start(run: Path, world: World) -> None:
    """On rank 0: add this start to the list in the run folder. Raises OSError if it cannot be written."""
    starts = [*read_starts(run), describe_start(world)]
    if len(starts) > MOST_STARTS:
        starts = [starts[0], *starts[1 - MOST_STARTS :]]
    write_text(run / FILE, to_json(starts))


def read_starts(run: Path) -> list[dict[str, Any]]:
    """All starts of a run so far, oldest first; those that are not told of in a file that can be read are left out."""
    try:
        starts = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [each for each in starts if isinstance(each, dict)] if isinstance(starts, list) else []


def describe_start(world: World) -> dict[str, Any]:
    """This start: when (seconds since 1970), the command as words, versions, commit of the working folder, hardware."""
    launch = read_launch()
    return {
        "time": round(time.time(), 3),
        "command": command_words(sys.orig_argv),
        "launcher": "torchrun" if launch.distributed else "none",
        "world_size": world.size,
        # Where nodes differ in their number of processes this is that of the nodes like the first.
        "nodes": -(-launch.world_size // launch.local_world_size),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"ddp_ft": __version__, **_versions()},
        "git": git_state(Path.cwd()),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "gpus": _gpu_names(world),
    }


def command_words(words: Sequence[str]) -> list[str]:
    """A command as words, in characters that can be shown; the interpreter by its name, and without secrets.

    A secret is the value of an option or key whose name says so, and the part before the @ of an address.
    """
    shown, hides = [], False
    for place, word in enumerate(words):
        word = printable(Path(word).name if place == 0 else word)
        secret = _SECRET.search(word)
        equals = word.find("=", secret.end()) if secret else -1
        if hides and not word.startswith("-"):
            shown.append(HIDDEN)
        elif equals >= 0:
            shown.append(f"{word[:equals]}={HIDDEN}")
        else:
            shown.append(_USER.sub(rf"\1{HIDDEN}@", word))
        hides = word.startswith("-") and secret is not None and equals < 0
    return shown


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "torch": str(torch.__version__)}  # with what it was built for, such as +cu128


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether its tracked files differ from it; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # Optional locks off: looking must not write into the user's repository.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or os.uname().machine)


def _gpu_names(world: World) -> list[str]:
    """Those of this node, where the run computes on GPUs."""
    if world.device.type != "cuda":
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
