"""What a configuration key is.

A key is of one of three kinds:

- recipe: decides the result; stored with the run and compared, as requested, when the run is resumed;
- machine: decides only speed, memory or what is written down; may change at any restart;
- length: how long the run is; grows by `--extend`.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

RECIPE, MACHINE, LENGTH = "recipe", "machine", "length"


@dataclass(frozen=True)
class Key:
    """One configuration key, as `--help`, `--set` and the checks see it.

    `low` and `high` are the least and the largest allowed value, `above` one that is too small already. `null` is what
    the value None is called: auto or none. `lists`: a text that may list several, separated by commas. `names_file`: a
    text that may be a path, or begin with one. `code`: how a text that must name code looks, such as FILE.py:NAME.
    `words`: what may stand in place of numbers. `former`: choices of earlier versions, which stored runs may have.
    """

    path: str
    type: type
    optional: bool
    default: Any
    help: str
    kind: str = RECIPE
    flag: str | None = None
    choices: tuple[str, ...] | None = None
    low: float | None = None
    above: float | None = None
    high: float | None = None
    null: str = "none"
    lists: bool = False
    names_file: bool = False
    code: str = ""
    words: tuple[str, ...] = ()
    former: tuple[str, ...] = ()

    @property
    def metavar(self) -> str:
        """The placeholder of the value in `--help`."""
        names = {bool: "BOOL", Path: "PATH", str: "TEXT", tuple: "NUMBERS", dict: "MAPPING"}
        return self.code or "|".join(self.choices or ()) or names.get(self.type, self.type.__name__.upper())


def key(default: Any, help: str, **spec: Any) -> Any:
    """A dataclass field for a key; `spec` has the fields of Key from `kind` on."""
    return field(default=default, metadata={"help": help, **spec})


machine_key, length_key = partial(key, kind=MACHINE), partial(key, kind=LENGTH)
