"""The model libraries by name, and the meaning of a model's name."""

import importlib
from difflib import get_close_matches
from typing import cast

from ddp_ft.config.paths import path_of
from ddp_ft.contracts import Call
from ddp_ft.errors import UserError, known_names, nearest
from ddp_ft.models.libraries.base import Library, call_with_images, is_source
from ddp_ft.models.outputs import OutputsCall
from ddp_ft.plugins import is_reference

_FORMS = (
    "Expected timm/NAME, torchvision/NAME, NAME, hf-hub:OWNER/NAME, local-dir:FOLDER, transformers/FOLDER_OR_NAME, or "
    "FILE.py:FACTORY."
)
_SHOWN = 4

# Imported when first used: timm alone costs 1.5 s. A further library is one file and one line here.
LIBRARIES = {
    "timm": "ddp_ft.models.libraries.timm",
    "torchvision": "ddp_ft.models.libraries.torchvision",
    "transformers": "ddp_ft.models.libraries.transformers",
}
USER_FILES = "file"
# Any name might be a folder of these, or on a hub, so it needs the library's name.
_WITHOUT_LIST = ("transformers",)


def get_library(key: str) -> Library:
    """Return the library of that key, the value of `spec["library"]`; UserError names the known ones."""
    known = {**LIBRARIES, USER_FILES: "ddp_ft.models.libraries.user_file"}
    if key not in known:
        raise UserError(f"Unknown model library '{key}'.", known_names(key, list(known)))
    return cast(Library, importlib.import_module(known[key]))


def call_of(key: str, outputs: int) -> Call:
    """Return the call of that library's networks of so many outputs. What networks for images return is theirs to
    decide, and so is searched for the outputs."""
    call = get_library(key).call
    return OutputsCall(call, outputs) if call is call_with_images else call


def full_name(key: str, name: str) -> str:
    """Return the model's name in messages and for `--model`."""
    return name if key == USER_FILES else f"{key}/{name}"


def resolve(name: str) -> tuple[str, str]:
    """Return (library, name in it) of a model name in any of its forms.

    A bare name means the one library that has it. Raises UserError if none has it, or several do.
    """
    bare = name.removeprefix("timm/")
    if is_source(bare):
        if not get_library("timm").knows(bare):
            raise _unknown(name)
        return "timm", bare
    if is_reference(name):
        return USER_FILES, name
    if name.endswith(".py"):
        raise UserError(f"--model {name} does not name the function that builds the model.", _FORMS)
    key, slash, inner = name.partition("/")
    if not slash:
        return _resolve_bare(name)
    if key not in LIBRARIES:
        if (path_of(name) / "config.json").is_file():
            raise UserError(f"--model {name} is a folder.", f"If transformers wrote it: --model transformers/{name}")
        raise UserError(f"Unknown model library '{key}' in --model {name}.", nearest(key, list(LIBRARIES)) or _FORMS)
    if not get_library(key).knows(inner):
        raise _unknown(name)
    return key, inner


def _resolve_bare(name: str) -> tuple[str, str]:
    having = [key for key in LIBRARIES if key not in _WITHOUT_LIST and get_library(key).knows(name)]
    if not having:
        raise _unknown(name)
    if len(having) > 1:
        choices = " or ".join(f"--model {full_name(key, name)}" for key in having)
        raise UserError(f"Several libraries have a model '{name}'.", f"Choose one: {choices}")
    return having[0], name


def _unknown(name: str) -> UserError:
    """The error, with the full names nearest to it in all libraries."""
    given, _, inner = name.rpartition("/")
    only_tag_unknown = given in LIBRARIES and get_library(given).knows(inner.partition(".")[0])
    owners: dict[str, list[str]] = {}
    for key in [given] if only_tag_unknown else LIBRARIES:
        for known in get_library(key).names():
            owners.setdefault(known, []).append(key)
    near = [full_name(key, each) for each in _near(inner, list(owners)) for key in owners[each]]
    hint = f"Did you mean {', '.join(near[:_SHOWN])}?" if near else _FORMS
    return UserError(f"Unknown model '{name}'.", hint)


def _near(inner: str, known: list[str]) -> list[str]:
    """The tags of the model if it is known, else names that begin alike, else names that are spelled alike."""
    base = inner.partition(".")[0]
    if base != inner and base in known:
        tagged = [each for each in known if each.startswith(f"{base}.")]
        return get_close_matches(inner, tagged, n=_SHOWN, cutoff=0.0)
    plain = [each for each in known if "." not in each]
    longer = sorted((each for each in plain if base and each.startswith(base)), key=len)
    return longer[:_SHOWN] or get_close_matches(base, plain, n=_SHOWN, cutoff=0.5)
