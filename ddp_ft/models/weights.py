"""Weights into a built model: what fits is loaded, a head of another size is not, the rest is an error."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.errors import UserError, nearest, one_line
from ddp_ft.models.libraries.base import State
from ddp_ft.models.libraries.registry import full_name, get_library, resolve

_PICKLED = (".pth", ".pt", ".bin", ".tar")
# What training scripts call the model inside a checkpoint; averaged weights are the better ones, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# How torch names what its restricted unpickler will not call; its other refusals are of damaged files.
_FOREIGN_CODE = re.compile(r"(?i)unsupported (global|class)|can only (create|build)|reduce for")
_PREFIXES = ("module.", "_orig_mod.", "model.")

_SHOWN = 3  # names of each kind in a message


@dataclass(frozen=True)
class _Match:
    """The names of a state and of a model, by what becomes of them."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    wrong_size: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_weights(built: BuiltModel, name: str, weights: str) -> LoadReport:
    """Load `weights` ("pretrained", "none", a file or a run folder) into the model that `name` built.

    Raises UserError if they cannot be had or read, and if they are of another architecture: a tensor outside
    of the head that has another shape, or less than half of the tensors outside of the head found.
    """
    if weights == "none":
        return LoadReport("")
    source, state = _obtain(name, weights)
    target = built.module.state_dict()
    state = _adapt(built, strip_prefixes(state, set(target)), target)
    head = _head_tensors(built, target)
    match = _match(state, target, head)
    _refuse_strangers(built, source, match, head)
    with torch.no_grad():
        # Copied name by name: load_state_dict of some models wants a version that files lack (mnasnet).
        for each in match.loaded:
            target[each].copy_(state[each])
    return LoadReport(source, match.loaded, match.skipped, match.missing, match.unexpected)


def _obtain(name: str, weights: str) -> tuple[str, State]:
    if weights != "pretrained":
        file = find_file(weights)
        return str(file), read_state(file)
    key, inner = resolve(name)
    library = get_library(key)
    state = library.pretrained(inner)
    return f"pretrained weights of {full_name(key, inner)}", state


def _adapt(built: BuiltModel, state: State, target: State) -> State:
    """What the library makes of the state, unless that fits worse than the state as it is."""
    adapted = get_library(built.spec["library"]).adapt(built.module, state)
    return adapted if _fitting(adapted, target) > _fitting(state, target) else state


def _fitting(state: State, target: State) -> int:
    return sum(name in target and target[name].shape == tensor.shape for name, tensor in state.items())


def _head_tensors(built: BuiltModel, target: State) -> frozenset[str]:
    """The names of the head's parameters and buffers, such as the statistics of an mlp's batch norm."""
    inside = f"{built.head_path}."
    return built.head | {name for name in target if built.head_path is not None and name.startswith(inside)}


def _match(state: State, target: State, head: frozenset[str]) -> _Match:
    shared = [name for name in target if name in state]
    unequal = [name for name in shared if state[name].shape != target[name].shape]
    return _Match(
        loaded=tuple(name for name in shared if name not in set(unequal)),
        skipped=tuple(name for name in unequal if name in head),
        wrong_size=tuple(name for name in unequal if name not in head),
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
    )


def _refuse_strangers(built: BuiltModel, source: str, match: _Match, head: frozenset[str]) -> None:
    loaded, missing = ([n for n in names if n not in head] for names in (match.loaded, match.missing))
    body = [*loaded, *match.wrong_size, *missing]
    if loaded and 2 * len(loaded) >= len(body) and not match.wrong_size:
        return
    model = full_name(built.spec["library"], built.spec["name"])
    lines = [
        *_examples("Of another size", match.wrong_size),
        *_examples("Missing", tuple(missing)),
        *_examples("In the file only", match.unexpected),
        "Give the --model that the weights were made with, its --image-size if only that differs, or --weights none.",
    ]
    raise UserError(
        f"{source} holds weights of another architecture than {model}: of the model's {len(body)} tensors "
        f"besides the head {len(loaded)} match, {len(match.wrong_size)} differ in size and "
        f"{len(missing)} are missing.",
        "\n".join(lines),
    )


def _examples(label: str, names: tuple[str, ...]) -> list[str]:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"{label}: {shown}"] if names else []


def fetch(name: str) -> str:
    """Download the pretrained weights of a model into its library's cache; gives a line that says so."""
    key, inner = resolve(name)
    library = get_library(key)
    state = library.pretrained(inner)
    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    return f"{full_name(key, inner)}: {len(state)} tensors, {size:.0f} MiB, in {library.cache_folder()}"


def find_file(given: str) -> Path:
    """The weights file that `--weights` means: a file, a run folder or the best/ of one."""
    path = Path(given).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        hint = nearest(given, ["pretrained", "none"])
        raise UserError(
            f"--weights {given}: no such file.", hint or "Expected pretrained, none, a file or a run folder."
        )
    if path.suffix not in (".safetensors", *_PICKLED):
        raise UserError(f"--weights {given}: unknown kind of file.", f"Expected .safetensors or {', '.join(_PICKLED)}.")
    return path


def _in_folder(folder: Path) -> Path:
    for file in (folder / "best" / "model.safetensors", folder / "model.safetensors"):
        if file.is_file():
            return file
    raise UserError(
        f"--weights {folder}: this folder has no best/model.safetensors.",
        "Expected the folder of a run that was evaluated at least once, or a weights file.",
    )


def read_state(file: Path) -> State:
    """The tensors of the file; UserError if it is damaged, holds none, or could run code when opened."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    state = _tensors(content)
    if not state:
        raise UserError(f"{file} holds no tensors by name.", "Expected a state dict, as module.state_dict() gives.")
    return state


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:
        raise _damaged(file, one_line(error)) from None


def _read_pickled(file: Path) -> Any:
    try:
        # timm and many scripts keep their options in the checkpoint; a Namespace of them is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the error then says, if there is one
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _FOREIGN_CODE.search(str(error)):
            raise _damaged(file, "it is not what torch.save writes") from None
        raise UserError(
            f"{file} holds Python objects besides tensors and is not opened: it could run foreign code.",
            "If you trust it, save its tensors alone elsewhere: torch.save(module.state_dict(), FILE).",
        ) from None
    except Exception as error:
        raise _damaged(file, one_line(error)) from None


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} cannot be read as weights: {reason}.",
        "It may be cut short: copy or download it again.",
    )


def _tensors(content: Any) -> State:
    if not isinstance(content, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping) and (inner := _tensors(content[wrapper])):
            return inner
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def strip_prefixes(state: State, wanted: set[str]) -> State:
    """Without what DDP, torch.compile or a wrapper put before the names, if more are `wanted` then."""
    best, rest = state, state
    for _ in range(len(_PREFIXES)):
        rest = {_without_prefix(name): tensor for name, tensor in rest.items()}
        if len(wanted & rest.keys()) > len(wanted & best.keys()):
            best = rest
    return best


def _without_prefix(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name[len(prefix) :]
