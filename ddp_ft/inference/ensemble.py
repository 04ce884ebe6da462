"""Averages over several models, or views of an image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ddp_ft.contracts import NO_VIEWS, Batch
from ddp_ft.data.image.views import CROPS, FLIP
from ddp_ft.errors import UserError, printable
from ddp_ft.inference.exported import Framed
from ddp_ft.inference.trained_model import Trained, load_trained

# Test-time augmentation: none, or one of the kinds that processors have.
VIEWS = (NO_VIEWS, FLIP, CROPS)


def load_ensemble(paths: Sequence[Path], device: torch.device, views: str | None = None) -> list[Trained]:
    """The models of several run folders, with these views, else with those that each one's run chose. UserError, with
    all differences, unless task and names are the same."""
    first, *others = [with_views(load_trained(path, device), views) for path in paths]
    differences = [
        f"  {path}: {difference}"
        for path, other in zip(paths[1:], others, strict=True)
        for difference in _differences(first, other)
    ]
    if differences:
        raise UserError(
            f"These models cannot be combined with {paths[0]}:\n" + "\n".join(differences),
            "Models of an ensemble have the same task and the same classes, in the same order.",
        )
    return [first, *others]


def _differences(first: Trained, other: Trained) -> list[str]:
    if first.task.name != other.task.name:
        return [f"its task is {other.task.name}, not {first.task.name}"]
    more = [name for name in other.names if name not in first.names]
    fewer = [name for name in first.names if name not in other.names]
    found = [f"it knows {', '.join(more)} in addition"] if more else []
    found += [f"it does not know {', '.join(fewer)}"] if fewer else []
    if not found and first.names != other.names:
        found = [f"it has the names in another order: {', '.join(other.names)}"]
    return found


def combine_members(members: Sequence[Trained], predictions: Sequence[Batch]) -> Batch:
    """The combined predictions of the members for the same samples."""
    return predictions[0] if len(members) == 1 else members[0].task.combine(predictions)


def with_views(trained: Trained, views: str | None) -> Trained:
    """The model with test-time augmentation; `views` is one of VIEWS, None: as its run chose."""
    views = trained.own_views if views is None else views
    if views == NO_VIEWS:
        return trained
    if views not in VIEWS:  # of an edited model.json; it would count as one of them
        raise UserError(f"The model has unknown views: {printable(views)}.", f"Expected one of {', '.join(VIEWS)}.")
    if isinstance(trained.module, Framed):
        raise UserError(
            f"--tta {views} does not work with a file that has its preprocessing inside.",
            "Export it without --with-preprocessing, or use the run folder.",
        )
    processor, seen = trained.processor.viewed(views)
    return replace(trained, views=seen, processor=processor)
