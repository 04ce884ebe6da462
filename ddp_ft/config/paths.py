"""Paths as people give them: ~ and $VAR count where no shell has read them, as after = and in files."""

import os
import re
from pathlib import Path

from ddp_ft.errors import UserError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(text: str) -> str:
    """The path with the home folder for ~ or ~USER at its beginning, and the values of $VAR and ${VAR}.

    A path that is there under the very name stays as it is, but for ~. UserError for a variable that is not set or is
    empty, and for a user without a home folder.
    """
    if text.startswith("~"):
        text = _with_home(text)
    if "$" not in text or os.path.lexists(text):
        return text
    return _VARIABLE.sub(lambda found: _value(found[1] or found[2], text), text)


def _with_home(text: str) -> str:
    found = os.path.expanduser(text)  # noqa: PTH111  (Path would change the rest of a text such as ~/FILE.py:NAME)
    if not found.startswith("~") or os.path.lexists(text):
        return found
    raise UserError(
        f"{text}: there is no home folder for {text.partition('/')[0]}.", f"A folder of that name: ./{text}"
    )


def _value(name: str, text: str) -> str:
    if value := os.environ.get(name):
        return value
    state = "empty" if name in os.environ else "not set"
    raise UserError(f"{text}: the variable ${name} is {state}.", f"Set it (export {name}=...), or give the whole path.")


def code_file(path: Path) -> Path | None:
    """The file of data that is FILE.py:NAME, code of the user's own; None for a folder or a table."""
    where, _, name = str(path).rpartition(":")
    return Path(where) if where.endswith(".py") and name else None


def path_of(text: str) -> Path:
    """`expanded` as a path."""
    return Path(expanded(text))
