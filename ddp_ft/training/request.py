"""What is asked of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import RunConfig
from ddp_ft.training.plan import Plan


@dataclass(frozen=True)
class Request:
    """What is wanted besides the recipe. `layers` are the settings as given, later ones winning.

    `tune`: measure what the layers leave open. `tuned` and `measured` are what was found by that, as in Plan.
    `earlier` is the plan of an earlier start of the run.
    """

    run_dir: Path
    layers: tuple[Mapping[str, Any], ...] = ()
    extend: bool = False
    dry_run: bool = False
    tune: bool = False
    tuned: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Mapping[str, Any]] = ()
    earlier: Plan | None = None

    def config(self, recipe: str | None = None) -> RunConfig:
        """The whole configuration; `recipe` is what auto became."""
        return make_config(*self.layers, recipe=recipe, tuned=self.tuned)
