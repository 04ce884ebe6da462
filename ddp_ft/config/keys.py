"""What a configuration key is.

A key is of one of three kinds:

- recipe: decides the result; stored with the run and compared, as requested, when the run goes on;
- machine: decides only speed, memory or what is written down; may change at any restart;
- length: how long the run is; grows by `--extend`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPE, MACHINE, LENGTH = "recipe", "machine", "length"


@dataclass(frozen=True)
class Key:
    """One configuration key, as `--help`, `--set` and the checks see it."""

    path: str
    type: type
    optional: bool
    default: Any
    help: str
    kind: str
    flag: str | None
    choices: tuple[str, ...] | None
    low: float | None
    above: float | None
    high: float | None

    @property
    def null(self) -> str:
        """What null is called, auto or none: the one that the help speaks of."""
        return "auto" if "auto" in self.help and "none:" not in self.help else "none"

    @property
    def metavar(self) -> str:
        """What stands for the value in `--help`."""
        return (
            "|".join(self.choices)
            if self.choices
            else {bool: "BOOL", Path: "PATH", str: "TEXT", tuple: "NUMBERS", dict: "MAPPING"}.get(
                self.type, self.type.__name__.upper()
            )
        )


def key(
    default: Any,
    help: str,
    *,
    kind: str = RECIPE,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field with what `schema` and `loading` need to know of it; `low` and `high` are allowed values."""
    return field(
        default=default,
        metadata={
            "help": help, "kind": kind, "flag": flag, "choices": choices, "low": low, "above": above, "high": high,
        },
    )  # fmt: skip
