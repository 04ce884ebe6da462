"""What a service is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
