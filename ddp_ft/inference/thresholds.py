"""From which probability on a label is there: as given, or as the validation set of the model's run says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ddp_ft.contracts import Task
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError, known_names
from ddp_ft.inference.asked import VALIDATION, Asked, probability
from ddp_ft.inference.exported import is_exported
from ddp_ft.inference.trained_model import Trained
from ddp_ft.run_folder.evaluations import load_evaluation
from ddp_ft.run_folder.model_folder import VIEWS, model_folder, read_description
from ddp_ft.tasks.scored.probabilities import THRESHOLD

_INSTEAD = (
    "Give probabilities. Those of a run that has them are written by `ddp-ft evaluate RUN --threshold validation "
    "--output FILE.json`, for --threshold FILE.json."
)


def choose_thresholds(task: Task, asked: Asked, world: World) -> dict[str, float]:
    """The threshold of each label, as asked for; empty if nothing is.

    UserError for a task without thresholds, for names that it does not have, and for a validation that is not there.
    """
    if asked.thresholds is None:
        return {}
    task.deciding_at([THRESHOLD] * len(task.names))  # a task without thresholds ends here
    return dict(zip(task.names, world.from_main(lambda: _chosen(task, asked)), strict=True))


def deciding_at(members: Sequence[Trained], thresholds: Mapping[str, float]) -> list[Trained]:
    """The models, the first of which decides for all at these thresholds; as they are if there are none."""
    first, *others = members
    task = first.task.deciding_at(list(thresholds.values())) if thresholds else first.task
    return [replace(first, task=task), *others]


def _chosen(task: Task, asked: Asked) -> list[float]:
    """A threshold for each name; THRESHOLD for those that are not given."""
    given = asked.thresholds
    if given == VALIDATION:
        return _of_validation(task, asked)
    if not isinstance(given, Mapping):
        return [probability(given)] * len(task.names)
    if unknown := [name for name in given if name not in task.names]:
        raise UserError(f"--threshold: the model has no label '{unknown[0]}'.", known_names(unknown[0], task.names))
    return [probability(given.get(name, THRESHOLD), name) for name in task.names]


def _of_validation(task: Task, asked: Asked) -> list[float]:
    """Those with the largest F1 of each label on the stored predictions of the validation set; THRESHOLD for a label
    that no image there has."""
    if len(asked.models) > 1 or asked.views not in (None, "none"):
        hint = "What a run keeps are the predictions of its model alone. Give numbers, or a file of them."
        raise UserError("--threshold validation does not go with --also or --tta.", hint)
    [model] = asked.models
    run = _run_with_predictions(model)
    if run is not None and asked.views is None and (own := read_description(model_folder(model)).get(VIEWS)):
        hint = "What it keeps are predictions without them: add --tta none, or give numbers, or a file of them."
        raise UserError(
            f"--threshold validation does not go with the views that {model} chose (eval.tta = {own}).", hint
        )
    evaluation = None if run is None else load_evaluation(run, "val", task)
    if evaluation is None or evaluation.predictions is None or evaluation.records is None:
        raise UserError(f"{model} has no predictions of a validation set, from which to choose thresholds.", _INSTEAD)
    try:
        scored = task.scored_set(evaluation.predictions, evaluation.records)
    except UserError as error:
        raise UserError(f"The predictions in {run}/evaluation are {error.message}", _INSTEAD) from None
    hints = [] if scored is None else scored.thresholds()
    return [THRESHOLD if hint is None else hint.threshold for hint in hints]


def _run_with_predictions(model: Path) -> Path | None:
    """The run folder whose best model this is; None for other models, to which its predictions do not belong."""
    if is_exported(model):
        return None
    folder = model_folder(model).resolve()
    return folder.parent if folder.name == "best" else None
