"""The command that starts a run as one of its starts did, with its number of processes."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_PROCESSES = "--processes", "--devices"
_AUTO = "auto"


def start_command(start: Mapping[str, Any]) -> str:
    """The command of an entry of provenance.json; on several nodes that of each node. Empty if it is not known."""
    words = [str(word) for word in start.get("command") or []]
    world_size, nodes = _number(start.get("world_size")), _number(start.get("nodes"))
    if "-m" not in words[:3]:
        return shlex.join(words)
    words = [words[0], *words[words.index("-m") :]]  # without -u, which launchers add
    if start.get("launcher") != "torchrun" or _says_processes(words):
        return shlex.join(_with_number(words, world_size))
    launcher = ["torchrun", f"--nproc_per_node={-(-world_size // nodes)}"]
    return shlex.join([*launcher, *([f"--nnodes={nodes}"] if nodes > 1 else []), *words[1:]])


def _number(value: object) -> int:
    """A number from 1 on; 1 for anything else that a damaged file may hold."""
    return value if isinstance(value, int) and value > 0 else 1


def _says_processes(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in _PROCESSES for word in words)


def _with_number(words: Sequence[str], processes: int) -> list[str]:
    """The words with the number of processes that `auto` was."""
    found = list(words)
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in _PROCESSES and value == _AUTO:
            found[place] = f"{name}={processes}"
        elif word in _PROCESSES and words[place + 1 : place + 2] == [_AUTO]:
            found[place + 1] = str(processes)
    return found
