"""The folder of a cross-validation: a run for each fold, and kfold.json. Free of torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_ft.errors import UserError, reason_of, shortened
from ddp_ft.files import read_sound_json, to_json, write_text
from ddp_ft.run_folder.contents import read_summary

FILE = "kfold.json"
# With one fold there is nothing else to learn from.
FEWEST = 2


def fold_folders(folder: Path, folds: int) -> list[Path]:
    """The run folders of its folds, in their order."""
    return [folder / f"fold_{fold}" for fold in range(1, folds + 1)]


def is_folded(folder: Path) -> bool:
    """Whether it is the folder of a cross-validation."""
    return (folder / FILE).is_file()


def _stored_number(folder: Path) -> int | None:
    """How many folds there are by its kfold.json; None without one, and for a damaged one."""
    found = read_sound_json(folder / FILE, dict).get("folds")
    return found if type(found) is int and found >= FEWEST else None  # bool is a kind of int


def open_folds(folder: Path, folds: int) -> None:
    """Make the folder; a damaged kfold.json is made anew. UserError if it holds another number of folds, or a run."""
    stored = _stored_number(folder)
    if stored not in (None, folds):
        raise UserError(f"{folder} holds {stored} folds, not {folds}.", "Choose another folder with --run-dir.")
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a single run.", "Choose another one with --run-dir.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if stored is None:
            write_text(folder / FILE, to_json({"folds": folds, "status": "unfinished"}))
    except OSError as error:
        hint = "Choose another with --run-dir."
        raise UserError(f"Folder {folder} cannot be written to: {reason_of(error)}.", hint) from None


def split_of_others(run_dir: Path) -> dict[str, Any] | None:
    """split.json of another fold of the cross-validation that this run folder is in; None if there is none."""
    if not is_folded(run_dir.absolute().parent):
        return None
    others = (each for each in sorted(run_dir.absolute().parent.glob("fold_*")) if each.name != run_dir.name)
    found = (read_sound_json(each / "split.json", dict) for each in others)
    return next((each for each in found if isinstance(each.get("fingerprint"), str)), None)


def forget_unbegun(folder: Path, folds: int) -> None:
    """Take back what `open_folds` made if no fold has begun: options that train refuses leave nothing behind."""
    if any(each.exists() for each in fold_folders(folder, folds)):
        return
    (folder / FILE).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else
        folder.rmdir()


def write_results(folder: Path, folds: int) -> dict[str, Any]:
    """Write kfold.json from the summaries of so many folds, and return its content.

    {"folds", "status": "done" or "unfinished", "done": the finished folds' names, "steps" of each of these, and for
    "val" and, where there is a test set, "test": {metric: {"mean", "deviation" (over folds, of a sample; null for a
    single one), "folds"}}}.
    """
    found = {each.name: read_summary(each) for each in fold_folders(folder, folds)}
    done = {name: summary for name, summary in found.items() if summary.get("status") == "done"}
    sets = {name: _over_folds([summary.get(name, {}) for summary in done.values()]) for name in ("val", "test")}
    status = "done" if len(done) == folds else "unfinished"
    steps = [summary.get("step") for summary in done.values()]
    content = {"folds": folds, "status": status, "done": list(done), "steps": steps} | {
        name: each for name, each in sets.items() if each
    }
    write_text(folder / FILE, to_json(content))
    return content


def _over_folds(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean and deviation of the metrics that all folds have."""
    first = metrics[0] if metrics else {}
    names = [name for name in first if all(isinstance(each.get(name), (int, float)) for each in metrics)]
    return {name: _described([each[name] for each in metrics]) for name in names}


def _described(values: list[float]) -> dict[str, Any]:
    are_finite = all(map(math.isfinite, values))
    deviation = statistics.stdev(values) if len(values) > 1 and are_finite else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "folds": values}


def members_of(path: Path) -> list[Path]:
    """The models that a path names: itself; or those of all folds, of a cross-validation. UserError if some of these
    are not trained yet."""
    if not is_folded(path):
        return [path]
    if (folds := _stored_number(path)) is None:
        hint = "The same ddp-ft kfold command writes it anew, and trains no finished fold again."
        raise UserError(f"{path / FILE} is damaged: it has no number of folds.", hint)
    folders = fold_folders(path, folds)
    if missing := [each.name for each in folders if read_summary(each).get("status") != "done"]:
        hint = "The same ddp-ft kfold command trains the rest."
        raise UserError(f"Not all folds of {path} are trained: {shortened(missing)} not.", hint)
    return folders
