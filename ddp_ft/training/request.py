"""What is asked of a run, and what an earlier start of it decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, to_flat
from ddp_ft.config.schema import RunConfig
from ddp_ft.config.synonyms import FORMER_RECIPES
from ddp_ft.contracts import DONE
from ddp_ft.errors import UserError
from ddp_ft.files import read_sound_json
from ddp_ft.run_folder.folder import RunFolder, check_same_recipe
from ddp_ft.run_folder.model_folder import is_sound
from ddp_ft.training.plan import Plan


@dataclass(frozen=True)
class Request:
    """What is asked for besides the recipe. `layers` are the settings as given, later ones winning.

    `tune`: measure what the layers leave open. `tuned` and `measured` are the results, as in Plan. `earlier` is the
    plan of an earlier start of the run, and `begun` are the settings with which the run began.
    """

    run_dir: Path
    layers: tuple[Mapping[str, Any], ...] = ()
    extend: bool = False
    dry_run: bool = False
    tune: bool = False
    tuned: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Mapping[str, Any]] = ()
    earlier: Plan | None = None
    begun: Mapping[str, Any] = field(default_factory=dict)

    def config(self, recipe: str | None = None) -> RunConfig:
        """Return the whole configuration; `recipe` is what auto became."""
        return make_config(*self.layers, recipe=recipe, tuned=self.tuned, begun=self.begun)

    def after(self, earlier: Plan | None, begun: Mapping[str, Any]) -> "Request":
        """Return the request after an earlier start, if there was one: what that measured, and what its recipe said,
        holds for all starts, also with a later version."""
        _refuse_former(self.config().recipe, begun)
        request = replace(self, begun=begun)
        if earlier is None:
            return request
        return replace(request, earlier=earlier, tuned=earlier.tuned, measured=earlier.measured)


def _refuse_former(recipe: str, begun: Mapping[str, Any]) -> None:
    """UserError for a recipe of an earlier version, unless the run has begun with it."""
    if recipe in FORMER_RECIPES and begun.get("recipe") != recipe:
        raise UserError(
            f"--recipe {recipe} is of earlier versions, and was no better than the others where it was measured.",
            f"Its settings were {FORMER_RECIPES[recipe]}",
        )


def begun_with(folder: RunFolder) -> dict[str, Any]:
    """Return the settings with which the folder's run began, by key; empty if there is none."""
    stored = folder.stored_config()
    return to_flat(stored, [RECIPE]) if stored is not None else {}


def is_finished(folder: RunFolder, config: RunConfig, extend: bool) -> bool:
    """Return whether the folder's run has ended, at the length asked for, and its model and summary are there.

    UserError if it is of another recipe.
    """
    stored, summary = folder.stored_config(), read_sound_json(folder.path / "summary.json", dict)
    check_same_recipe(folder, config, extend)
    if stored is None or summary.get("status") != DONE or not is_sound(folder.best):
        return False
    return to_flat(stored, [LENGTH]) == to_flat(config, [LENGTH])
