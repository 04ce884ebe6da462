"""What a service is given, and the methods that it must have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[str], None]


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Start:
    """What a service is given at each start of a run.

    `recipe` and `lengths` are configuration keys with their values; those of `recipe` never change. `kept` holds the
    rows of metrics.jsonl that stay: those that the service lacks are sent at the start.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    lengths: Mapping[str, Any]
    kept: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where services keep their facts for the next start, and the output of their libraries."""
        return self.run_dir / "trackers"


class Service(Protocol):
    """The class of a service. `log` prints a line for the user."""

    def __init__(self, start: Start, log: Log) -> None: ...

    def log(self, row: Row) -> None:
        """Send a row of metrics.jsonl, unless the service has it from an earlier start."""

    def warn(self, step: int, text: str) -> None:
        """Send a warning."""

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Send an image, as the bytes of a PNG."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Send the end of the run: its recipe, and the metrics of its best model."""

    def close(self) -> None:
        """Send the rest. Without `finish` before, the run was stopped or has failed."""
