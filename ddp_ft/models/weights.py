"""Load weights into a built model: what fits is loaded, a head of another size is not, the rest is an error."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.errors import UserError, nearest, one_line, shortened, typed_line
from ddp_ft.models.libraries.base import State
from ddp_ft.models.libraries.registry import full_name, get_library, resolve
from ddp_ft.run_folder.pointers import followed

_PICKLED = (".pth", ".pt", ".bin", ".tar")
# Names of the model in the checkpoints of training scripts; averaged weights first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# What torch's restricted unpickler says of code that it does not call; its other errors are of damaged files.
_FOREIGN_CODE = re.compile(r"(?i)unsupported (global|class)|can only (create|build)|reduce for")
_PREFIX = re.compile(r"^(module|_orig_mod|model)\.")
_MOST_PREFIXES = 3
_SHOWN = 3  # names of each kind in a message


def load_weights(built: BuiltModel, name: str, weights: str) -> LoadReport:
    """Load `weights` ("pretrained", "none", a file or a run folder) into the model that `name` built.

    Raises UserError if they cannot be fetched or read, and if they are of another architecture: a tensor outside
    the head has another shape, or less than half of the tensors outside the head were found.
    """
    if weights == "none":
        return LoadReport("")
    source, state = _obtain(name, weights)
    target = built.module.state_dict()
    state = _adapt(built, strip_prefixes(state, set(target)), target)
    head = _head_tensors(built, target)
    report, wrong_size = _match(source, state, target, head)
    _refuse_strangers(built, report, wrong_size, head)
    with torch.no_grad():
        # Copied name by name: load_state_dict of some models wants a version that files lack (mnasnet).
        for each in report.loaded:
            target[each].copy_(state[each])
    return report


def _obtain(name: str, weights: str) -> tuple[str, State]:
    if weights != "pretrained":
        file = find_file(weights)
        return str(file), read_state(file)
    key, inner = resolve(name)
    return f"pretrained weights of {full_name(key, inner)}", get_library(key).pretrained(inner)


def _adapt(built: BuiltModel, state: State, target: State) -> State:
    """Return what the library makes of the state, if more of that fits than of the state as it is."""

    def fitting(state: State) -> int:
        return sum(name in target and target[name].shape == tensor.shape for name, tensor in state.items())

    adapted = get_library(built.spec["library"]).adapt(built.module, state)
    return adapted if fitting(adapted) > fitting(state) else state


def _head_tensors(built: BuiltModel, target: State) -> frozenset[str]:
    """The names of the head's parameters and buffers (such as the statistics of an mlp's batch norm)."""
    inside = f"{built.head_path}."
    return built.head | {name for name in target if built.head_path is not None and name.startswith(inside)}


def _match(source: str, state: State, target: State, head: frozenset[str]) -> tuple[LoadReport, list[str]]:
    """What becomes of each name, and the names outside the head whose shapes differ."""
    unequal = [name for name in target if name in state and state[name].shape != target[name].shape]
    report = LoadReport(
        source,
        loaded=tuple(name for name in target if name in state and name not in unequal),
        skipped=tuple(name for name in unequal if name in head),
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
    )
    return report, [name for name in unequal if name not in head]


def _refuse_strangers(built: BuiltModel, report: LoadReport, wrong_size: list[str], head: frozenset[str]) -> None:
    loaded, missing = ([n for n in names if n not in head] for names in (report.loaded, report.missing))
    body = [*loaded, *wrong_size, *missing]
    if loaded and 2 * len(loaded) >= len(body) and not wrong_size:
        return
    model = full_name(built.spec["library"], built.spec["name"])
    kinds = {"Of another size": wrong_size, "Missing": missing, "In the file only": report.unexpected}
    lines = [f"{label}: {shortened(names, _SHOWN)}" for label, names in kinds.items() if names]
    lines += ["Give the --model of these weights, its --image-size if only that differs, or --weights none."]
    raise UserError(
        f"{report.source} holds weights of another architecture than {model}: of the model's {len(body)} tensors "
        f"besides the head {len(loaded)} match, {len(wrong_size)} differ in size and {len(missing)} are missing.",
        "\n".join(lines),
    )


def fetch(name: str) -> str:
    """Download the pretrained weights of a model into its library's cache; return a line that reports it."""
    key, inner = resolve(name)
    library = get_library(key)
    state = library.pretrained(inner)
    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    return f"{full_name(key, inner)}: {len(state)} tensors, {size:.0f} MiB, in {library.cache_folder()}"


def find_file(given: str) -> Path:
    """Return the file that `--weights` names: a file, or that of a run folder or its best/."""
    path = followed(Path(given).expanduser())
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        hint = nearest(given, ["pretrained", "none"]) or "Expected pretrained, none, a file or a run folder."
        raise UserError(f"--weights {given}: no such file.", hint)
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
    """Return the tensors of the file; UserError if it is damaged, holds none, or could run code when opened."""
    from safetensors.torch import load_file

    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")
    try:
        state = _tensors(load_file(file) if file.suffix == ".safetensors" else _unpickle(file))
    except UserError:
        raise
    except Exception as error:
        hint = "It may be cut short: copy or download it again."
        raise UserError(f"{file} cannot be read as weights: {_why(file, error)}.", hint) from None
    if not state:
        raise UserError(f"{file} holds no tensors by name.", "Expected a state dict, as module.state_dict() returns.")
    return state


def _why(file: Path, error: Exception) -> str:
    """What is wrong with a file: what it is instead, or else the reader's words."""
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, for which `git lfs pull` gets the file"
    if head.startswith((b"<!", b"<html", b"<?xml")):
        return "it is a web page"
    if file.suffix == ".safetensors":
        return one_line(error)
    is_saved = head.startswith((b"PK", b"\x80")) and not isinstance(error, pickle.UnpicklingError)  # a zip, a pickle
    return typed_line(error) if is_saved else "it is not what torch.save writes"


def _unpickle(file: Path) -> Any:
    # timm and many scripts keep their options in the checkpoint; a Namespace of them is harmless.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error, if there is one, says the same
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _FOREIGN_CODE.search(str(error)):
                raise
            raise UserError(
                f"{file} holds Python objects besides tensors and is not opened: it could run foreign code.",
                "If you trust it, load it in Python and save only its tensors: torch.save(module.state_dict(), FILE).",
            ) from None


def _tensors(content: Any) -> State:
    if not isinstance(content, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping) and (inner := _tensors(content[wrapper])):
            return inner
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def strip_prefixes(state: State, wanted: set[str]) -> State:
    """Remove what DDP, torch.compile or a wrapper put before the names, if more of them are `wanted` then."""
    best, rest = state, state
    for _ in range(_MOST_PREFIXES):
        rest = {_PREFIX.sub("", name): tensor for name, tensor in rest.items()}
        if len(wanted & rest.keys()) > len(wanted & best.keys()):
            best = rest
    return best
