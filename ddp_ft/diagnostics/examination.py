"""The doctor's request, and what is known so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ddp_ft.config.schema import RunConfig
from ddp_ft.diagnostics.finding import Finding, guarded, tried
from ddp_ft.distributed.environment import Launch

T = TypeVar("T")
Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Asked:
    """The command line's request; `layers` are settings as in `training.request.Request`."""

    layers: tuple[Mapping[str, Any], ...]
    run_dir: Path
    quick: bool


@dataclass
class Examination:
    """What is known so far. `report` is called with the numbers of samples read and of all; `families` are the findings
    by family, of rank 0 alone."""

    asked: Asked
    config: RunConfig
    launch: Launch
    report: Progress
    families: dict[str, list[Finding]] = field(default_factory=dict)
    workers: int = 0

    def add(self, family: str, found: list[Finding]) -> None:
        """Add findings to a family."""
        self.families.setdefault(family, []).extend(found)

    def check(self, family: str, name: str, check: Callable[[], Any]) -> None:
        """Add what a check finds, if this is rank 0."""
        if self.launch.rank == 0:
            self.add(family, guarded(name, check))

    def attempt(self, family: str, name: str, work: Callable[[], T]) -> T | None:
        """Return what `work` returns; None and a problem of that name if it fails."""
        result, failure = tried(name, work)
        self.add(family, failure)
        return result
