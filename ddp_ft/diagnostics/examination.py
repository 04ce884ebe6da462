"""What is asked of the doctor, and what is known so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import RunConfig
from ddp_ft.diagnostics.finding import Finding, guarded
from ddp_ft.distributed.environment import Launch

Tell = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; `layers` are settings as in `training.state.Request`."""

    layers: tuple[Mapping[str, Any], ...]
    run_dir: Path
    quick: bool


@dataclass
class Examination:
    """What is known so far. `families` are findings by family, of rank 0 alone."""

    asked: Asked
    config: RunConfig
    launch: Launch
    tell: Tell
    families: dict[str, list[Finding]] = field(default_factory=dict)
    workers: int = 0

    def add(self, family: str, found: list[Finding]) -> None:
        """Add findings to a family."""
        self.families.setdefault(family, []).extend(found)

    def check(self, family: str, name: str, check: Callable[[], Any]) -> None:
        """Add what a check finds, if this is rank 0."""
        if self.launch.rank == 0:
            self.add(family, guarded(name, check))
