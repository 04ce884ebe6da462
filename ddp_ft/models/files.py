"""Tensors by name out of a weights file, whatever it is wrapped in."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.errors import UserError, nearest, one_line
from ddp_ft.models.libraries.base import State

_PICKLED = (".pth", ".pt", ".bin", ".tar")
# What training scripts call the model inside a checkpoint; averaged weights are the better ones, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# How torch names what its restricted unpickler will not call; its other refusals are of damaged files.
_FOREIGN_CODE = re.compile(r"(?i)unsupported (global|class)|can only (create|build)|reduce for")
_PREFIXES = ("module.", "_orig_mod.", "model.")


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
