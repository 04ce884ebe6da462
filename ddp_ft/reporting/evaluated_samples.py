"""The samples that a run was evaluated on, read once more to be shown."""

from dataclasses import replace
from pathlib import Path

from ddp_ft.contracts import BadSample, LabelledSource
from ddp_ft.data.splits.open import open_part, schema_in
from ddp_ft.errors import UserError, printable
from ddp_ft.reporting.facts import RunFacts

UNREADABLE = (UserError, BadSample, OSError, ValueError)


def open_evaluated(facts: RunFacts, split: str, data: Path | None = None) -> LabelledSource:
    """The samples of a scored set, from the run's own folder or from `data`. UserError if they are no more the same."""
    path = data or facts.config.data.path
    if path is None:
        raise UserError("The run names no data.")
    config = replace(facts.config.data, path=path)
    # Reading all images to find damaged ones is only needed where some were left out.
    scored_set = facts.scored_sets[split]
    schema = schema_in(path, facts.task.kinds, facts.names)
    for on_error in dict.fromkeys(("fail", config.on_error)):
        source = open_part(replace(config, on_error=on_error), schema, split, facts.split)[1]
        if len(source) == len(scored_set):
            break
    if len(source) != len(scored_set) or not scored_set.has_targets(source.targets):
        raise UserError(f"{config.path} has other {split} images than the run had.")
    return source


def read_error(error: Exception) -> str:
    """Why images cannot be shown, in one line."""
    return printable(error.message if isinstance(error, UserError) else str(error)).removeprefix("--data ")
