"""What a service is told, and what it must offer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Say = Callable[[str], None]


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Start:
    """What a service is told at each start of a run.

    `recipe` and `lengths` are configuration keys with their values; the first never change. `kept` holds the rows of
    metrics.jsonl of the steps that will not run again: what the service lacks of them is sent now.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    lengths: Mapping[str, Any]
    kept: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where services keep what they need to go on with, and what their libraries print."""
        return self.run_dir / "trackers"


class Service(Protocol):
    """What the class of a service has; it is made with a Start and a function that prints a line to the user."""

    def __init__(self, start: Start, say: Say) -> None: ...

    def log(self, row: Row) -> None:
        """One row of metrics.jsonl, unless the service has it from an earlier start."""

    def warn(self, step: int, text: str) -> None:
        """Something that a person should know of."""

    def image(self, tag: str, step: int, png: bytes) -> None:
        """An image, as the bytes of a PNG."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run has ended: its recipe, and the metrics of its best model."""

    def close(self) -> None:
        """Hand on what waits. Without `finish` before it, the run was stopped or has failed."""
