"""The small files of a run folder: what each is for, read in one way, and how to go on without one that is damaged."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddp_ft.errors import UserError, printable
from ddp_ft.files import read_json

T = TypeVar("T", dict[str, Any], list[Any])
D = TypeVar("D")
Row = dict[str, Any]

_ANEW = "Give the run's own command again, which makes the file anew."
_COPY = "Put a copy of it back, or remove it and give the run's own command again"
# {name: (what the file is for, how to go on without it)}
PURPOSES = {
    "config.yaml": ("the settings of the run", f"{_COPY} with all its options, which makes it anew."),
    "plan.json": ("what was resolved and measured for the run", _ANEW),
    "classes.json": ("the names of the classes", _ANEW),
    "split.json": (
        "which samples train and which validate",
        f"{_COPY}, which divides them anew: as before, if neither the data nor the seed has changed.",
    ),
    "summary.json": ("how the run ended", _ANEW),
    "lease.json": ("who writes to the run folder", _ANEW),
    "metrics.jsonl": ("the curves of the run", f"{_COPY}, which begins it anew."),
    "model.json": (
        "how the model is built, and how its input is prepared",
        "Of a run: give its own command again, which brings best/ back. Of an export: export it again.",
    ),
    "batch.json": ("the samples and settings of that step", "Remove its folder: replay needs it only to be exact."),
}
_OTHER = ("a part of the run", "Put a copy of it back, or remove it.")
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
# Values of the summary that others compute with.
_SUMMARY = {
    "status": (str,), "val": (dict,), "test": (dict,),
    **dict.fromkeys(("step", "best_step", "restarts", "bad_steps"), (int,)),
    **dict.fromkeys((
        "epoch", "best_epoch", "images_per_second", "data_wait_share", "train_seconds", "wall_seconds",
        "tokens_per_second", "padding_share", "compile_seconds", "save_copy_seconds", "save_stall_seconds",
    ), (int, float)),
}  # fmt: skip
# What every row of metrics.jsonl has.
_ROW = {"step": (int,), "epoch": (int, float), "split": (str,)}
_TIME = {"time": (int, float)}


class Damaged(UserError):
    """A small file with another content than was written."""


def check_encodable(path: Path) -> None:
    """UserError if the path has bytes that are not UTF-8, which the libraries of weights and curves cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{printable(str(path))}: this name is not UTF-8.", "Rename it, or choose another.") from None


def damaged(file: Path, what: str) -> Damaged:
    """The error for a small file; `what` continues its name: "is empty"."""
    purpose, remedy = PURPOSES.get(file.name, _OTHER)
    return Damaged(f"{file} {what}.", f"It holds {purpose}. {remedy}")


def read_content(file: Path, kind: type[T], keys: Mapping[str, tuple[type, ...]] | None = None) -> T | None:
    """What a JSON file holds; None if there is none. `keys`: those that an object must have, with their types.

    Raises Damaged for any other content, and UserError if it may not be read.
    """
    try:
        content = read_json(file, kind)
    except PermissionError as error:
        raise UserError(f"{file}: {error.strerror}.", "Ask its owner for the right to read it.") from None
    except OSError as error:
        is_folder = isinstance(error, IsADirectoryError)
        raise damaged(file, "is a folder" if is_folder else f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise damaged(file, str(error)) from None
    if content is not None and keys and (problem := problem_in(content, keys)):
        raise damaged(file, problem)
    return content


def problem_in(content: Any, keys: Mapping[str, tuple[type, ...]]) -> str:
    """What an object lacks of these keys, or has with another type; empty if nothing."""
    for name, allowed in keys.items():
        if name not in content:
            return f"has no '{name}'"
        if not isinstance(content[name], allowed):
            expected = " or ".join(dict.fromkeys(_NAMES.get(each, "nothing") for each in allowed))
            return f"has {_shown(content[name])} for '{name}', where {expected} belongs"
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def keys_of(of: type, required: bool = False) -> dict[str, tuple[type, ...]]:
    """The fields of a dataclass with the types that JSON has for them; only the `required` ones: those without a
    default, which files of earlier versions have too."""
    return {
        each.name: _json_types(each.type) for each in dataclasses.fields(of) if not (required and _has_default(each))
    }


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _json_types(annotation: Any) -> tuple[type, ...]:
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return tuple(each for inner in typing.get_args(annotation) for each in _json_types(inner))
    if origin is float:
        return (float, int)
    if issubclass(origin, str):
        return (str,)
    return (dict,) if issubclass(origin, Mapping) else (list,) if issubclass(origin, Sequence) else (origin,)


def as_dataclass(of: type[D], content: Mapping[str, Any]) -> D | None:
    """The fields of a dataclass that the object has; None if one of them has another type."""
    keys = {name: allowed for name, allowed in keys_of(of).items() if name in content}
    return None if problem_in(content, keys) else of(**{name: content[name] for name in keys})


def read_summary(run: Path) -> dict[str, Any]:
    """A run's summary.json; empty if there is none. UserError if it is damaged."""
    file = run / "summary.json"
    content = read_content(file, dict) or {}
    if problem := problem_in(content, {name: kinds for name, kinds in _SUMMARY.items() if name in content}):
        raise damaged(file, problem)
    return content


def read_rows(file: Path) -> list[Row]:
    """The rows of a metrics.jsonl. What is no row is left out: a last line that a crash cut short, a damaged one."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise damaged(file, f"cannot be read: {error.strerror}") from None
    return [row for row in sound_rows(text) if not problem_in(row, _TIME)]


def sound_rows(text: str) -> list[Row]:
    """The rows in a text of metrics.jsonl or a part of it."""
    found = []
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and not problem_in(row, _ROW):
            found.append(row)
    return found
