"""Weights files of any training script: found, opened without running anything that is in them, searched for states."""

import argparse
import errno
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.paths import path_of
from ddp_ft.config.synonyms import value_answer
from ddp_ft.errors import UserError, nearest, one_line, reason_of, shortened, typed_line
from ddp_ft.models.libraries.base import State
from ddp_ft.run_folder.contents import read_content
from ddp_ft.run_folder.pointers import followed

# What a folder may have, in this order: a run, its best/, an export, a folder of the Hugging Face hub.
_IN_FOLDERS = (
    "best/model.safetensors", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
_SAFETENSORS, _INDEX = ".safetensors", ".index.json"
# How deep a state may be: "checkpoint", "model", "state_dict" and so on.
_DEEPEST = 5
# What torch's restricted unpickler says of code that it does not call; its other errors are of damaged files.
_FOREIGN_CODE = re.compile(r"(?i)unsupported (global|class)|can only (create|build)|reduce for")
_FOREIGN_NAME = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.<>]+) was not an allowed")
_MOST_NAMES = 200
# Files of weights that torch cannot read, by their first bytes.
_OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file, such as Keras writes", b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"GGUF": "a GGUF file",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What a weights file has.

    `states` by their place in it, such as "model.ema" ("": the file itself), in the file's order; the file's own
    `keys`; and the `skipped` kinds of objects, which were neither imported nor called.
    """

    states: dict[str, State]
    keys: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class _Skipped(list[Any]):
    """In place of an object that is no tensor: it does nothing, and has items only if the file appends some."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _SkippedMapping:
    """In place of a mapping of a foreign class, such as a defaultdict: a plain one, which the unpickler can fill."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        return OrderedDict()


def find_file(given: str) -> Path:
    """Return the file that `--weights` names: a file of any name, or that of a folder."""
    path = followed(path_of(given))
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        hint = value_answer("model.weights", given) or nearest(given, ["pretrained", "none"])
        hint = hint or "Expected pretrained, none, a file or a folder with one."
        raise UserError(f"--weights {given}: no such file.", hint)
    return path


def _in_folder(folder: Path) -> Path:
    for file in (folder / name for name in _IN_FOLDERS):
        if file.is_file():
            return file
    there = shortened(sorted(each.name for each in folder.iterdir())) or "nothing"
    raise UserError(
        f"--weights {folder}: this folder has no best/model.safetensors.",
        f"Expected a run that was evaluated at least once, a folder with {' or '.join(_IN_FOLDERS[1:])}, or a file. "
        f"It has: {there}.",
    )


def read_weights_file(file: Path) -> Contents:
    """Return all states of the file; UserError if it is damaged, holds none, or could run code when opened."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")
    try:
        content, skipped = _open(file)
    except UserError:
        raise
    except Exception as error:
        hint = "It may be cut short: copy or download it again."
        raise UserError(f"{file} cannot be read as weights: {_why(file, error)}.", hint) from None
    keys = tuple(map(str, content)) if isinstance(content, Mapping) else ()
    states = dict(_states(content, "", _DEEPEST))
    if not states:
        if skipped:
            raise _could_run_code(file, skipped)
        has = f" It has: {shortened(keys)}." if keys else ""
        raise UserError(f"{file} holds no tensors by name.", f"Expected what module.state_dict() returns.{has}")
    return Contents(states, keys, skipped)


def _why(file: Path, error: Exception) -> str:
    """What is wrong with a file: what it is instead, or else the reader's words."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is what torch makes of a cut archive
        return reason_of(error)
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, for which `git lfs pull` gets the file"
    if head.startswith((b"<!", b"<html", b"<?xml")):
        return "it is a web page"
    if known := next((name for start, name in _OTHER_FORMATS.items() if head.startswith(start)), ""):
        return f"it is {known}, and not what torch.save writes"
    if head.isascii() and head.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "it is text, and not what torch.save writes"
    if head.startswith(b"PK") and (isinstance(error, OSError) or "central directory" in str(error)):
        return "its archive is cut short"
    if "not in a subdirectory" in str(error):
        return "it is an archive of other things, such as NumPy's .npz, and not what torch.save writes"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which is a program"
    if file.suffix.lower() == _SAFETENSORS:
        return one_line(error)
    # A zip, or a pickle. Of other bytes the reader has only words for pickle's machine.
    is_saved = head.startswith((b"PK", b"\x80")) and not isinstance(error, pickle.UnpicklingError)
    return typed_line(error) if is_saved and "weights_only" not in str(error) else "it is not what torch.save writes"


def _open(file: Path) -> tuple[Any, tuple[str, ...]]:
    """What the file holds, and the kinds of objects that were skipped."""
    if file.name.endswith(_INDEX):
        return _shards(file)
    with file.open("rb") as stream:
        begins_as_safetensors = stream.read(9)[8:] == b"{"  # after the length of its header
    if begins_as_safetensors or file.suffix.lower() == _SAFETENSORS:
        from safetensors.torch import load_file

        return load_file(file), ()
    return _unpickle(file)


def _shards(index: Path) -> tuple[State, tuple[str, ...]]:
    """The tensors of all files that an index names, which lie beside it."""
    parts = (read_content(index, dict, {"weight_map": (dict,)}) or {})["weight_map"].values()
    state: State = {}
    for name in sorted(set(map(str, parts))):
        file = index.with_name(Path(name).name)
        if not file.is_file():
            raise UserError(f"{index} names {name}, which is not there.", "Copy or download all files of the folder.")
        content, _ = _open(file)
        state |= {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return state, ()


def _unpickle(file: Path) -> tuple[Any, tuple[str, ...]]:
    """Open what torch.save wrote with torch's restricted unpickler. What it does not know is replaced by name, so that
    nothing of the file is imported or called. UserError if that is not enough."""
    stand_ins: dict[str, type] = {}
    while True:
        # timm and many scripts keep their options in the checkpoint; a Namespace of them is harmless.
        known: list[Any] = [argparse.Namespace, *((type(name, (base,), {}), name) for name, base in stand_ins.items())]
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error, if there is one, says the same
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
                return content, tuple(name for name, base in stand_ins.items() if base is _Skipped)
            except pickle.UnpicklingError as error:
                stand_ins |= _more_stand_ins(file, str(error), stand_ins)


def _more_stand_ins(file: Path, message: str, present: Mapping[str, type]) -> dict[str, type]:
    """What to put in the place of the classes that torch's unpickler complains of. Raises its error again if that is
    of something else; UserError if no stand-in helps."""
    if filled := [name for name, base in present.items() if base is _Skipped and f"but got {_shown(name)}" in message]:
        return dict.fromkeys(filled, _SkippedMapping)
    if not _FOREIGN_CODE.search(message):
        raise
    more = _unknown_names(file, message) - present.keys()
    if not more or len(present) + len(more) > _MOST_NAMES:
        raise _could_run_code(file, (*present, *more)) from None
    return dict.fromkeys(sorted(more), _Skipped)


def _shown(name: str) -> str:
    """The stand-in of that name in messages of the unpickler."""
    return f"<class '{__name__}.{name}'>"


def _unknown_names(file: Path, message: str) -> set[str]:
    """The names of a file that torch's unpickler refuses: all of them, or of an old file those in its message."""
    found = set(_FOREIGN_NAME.findall(message))
    # Of what Python has built in the message leaves out the module, which has another name in old files.
    found |= {f"{module}.{name}" for name in found if "." not in name for module in ("builtins", "__builtin__")}
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) | found
    except Exception:  # not of this format
        return found


def _could_run_code(file: Path, names: tuple[str, ...]) -> UserError:
    shown = f" ({shortened(names, 3)})" if names else ""
    return UserError(
        f"{file} holds Python objects besides tensors{shown} and is not opened: it could run foreign code.",
        "If you trust it, load it in Python and save only its tensors: torch.save(module.state_dict(), FILE).",
    )


def _states(content: Any, place: str, depth: int) -> Iterator[tuple[str, State]]:
    if not isinstance(content, Mapping) or depth < 0:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if state := {name: _plain(value) for name, value in named.items() if isinstance(value, Tensor)}:
        yield place, state
    for name, value in named.items():
        yield from _states(value, f"{place}.{name}".lstrip("."), depth - 1)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor, or what a quantised one stands for."""
    return tensor.dequantize() if tensor.is_quantized else tensor
