"""The end of a run: summary.json, the last lines that are printed, and the report."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import RECIPE
from ddp_ft.config.loading import make_config, to_flat
from ddp_ft.contracts import PROBE, STOPPED, LabelledSource, Log
from ddp_ft.errors import typed_line
from ddp_ft.texts import metric_figure, plural, sample_noun
from ddp_ft.trackers.console import Console
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.validation import is_stale

# Keys that the table of hyperparameters has in any case, or by the data and not by the recipe.
_SHOWN = ("model.name", "recipe", "optim.lr", "train.epochs", "train.batch_size", "seed", "task", "data.path")


def summarise(run: Run, state: TrainState, status: str, sets: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """The content of summary.json; `sets` has the metrics of the best model on "test" and others, if there are any."""
    progress, steps_per_epoch = state.progress, run.plan.steps_per_epoch
    if progress.phase == PROBE:
        steps_per_epoch = math.ceil(run.plan.train_samples / run.config.probe.batch_size)
    return {
        "status": status,
        "phase": progress.phase,
        "step": progress.step,
        "epoch": round(progress.step / steps_per_epoch, 4),
        "val": progress.best.metrics,
        **{name: metrics for name, metrics in sets.items() if metrics},
        "best_step": progress.best.step,
        "best_epoch": round(progress.best.epoch, 4),
        "best_phase": progress.best.phase,
        "best_weights": progress.best.weights,
        "stopped_early": is_stale(run, progress),
        "images_per_second": progress.images_per_second,
        "data_wait_share": progress.data_wait_share,
        **progress.token_speed,
        "train_seconds": progress.timed_seconds,
        "wall_seconds": progress.wall_seconds,
        "compile_seconds": progress.compile_seconds,
        "restarts": progress.restarts,
        "bad_steps": progress.bad_steps,
        "checkpoints": progress.saves,
        "save_copy_seconds": progress.copy_seconds,
        "save_stall_seconds": progress.stall_seconds,
        "world_size": run.world.size,
    }


def hyperparameters(run: Run) -> dict[str, Any]:
    """What a table that compares runs shows of this one: model, rate, length and recipe, with the keys that differ from
    that recipe's defaults, as one text and one by one. The numbers keep the five first where names are sorted:
    TensorBoard shows five until others are ticked."""
    config, plan = run.config, run.plan
    usual = to_flat(make_config({"recipe": plan.recipe}), [RECIPE])
    changed = {
        key: value for key, value in to_flat(config, [RECIPE]).items() if key not in _SHOWN and value != usual[key]
    }
    return {
        "1_model": config.model.name,
        "2_learning_rate": plan.lr,
        "3_epochs": plan.epochs,
        "4_batch_size": config.train.batch_size,
        "5_recipe": ", ".join([plan.recipe, *(f"{key}={value}" for key, value in changed.items())]),
        "seed": config.seed,
        **changed,
    }


def print_end(run: Run, state: TrainState, console: Console, status: str, test: Mapping[str, float]) -> None:
    """Print the last lines: at which step the run stopped; or its best model, with its metrics on the validation set
    and, if there is one, on the test set."""
    if status == STOPPED:
        console.print(f"Stopped at step {state.progress.step}, saved. The same command resumes there.")
        return
    best = state.progress.best
    rows = {name: [value, *([test[name]] if name in test else [])] for name, value in best.metrics.items()}
    heading = {"": f"{'val':>8}  {'test':>8}"} if test else {}
    texts = {name: "  ".join(f"{metric_figure(value):>8}" for value in values) for name, values in rows.items()}
    console.table(f"Best model ({best}): {run.folder.best}", heading | texts)
    if (best_of_all := state.progress.top) and run.score(best_of_all) > run.score(best.metrics):
        top, noun = metric_figure(best_of_all[run.metric]), sample_noun(run.splits.val.kind)
        console.print(
            f"It is the latest that may be as good as the best evaluation ({run.metric} {top}), which "
            f"{plural(len(run.splits.val), noun)} cannot tell from it (eval.choose)."
        )
    what = f"{sample_noun(run.splits.train.kind).upper()}_OR_FOLDER"
    console.print(f"Use it: ddp-ft predict {shlex.quote(str(run.folder.path))} {what}")


def report_at_the_end(run: Path, sources: Mapping[str, LabelledSource], log: Log) -> None:
    """Write the report of a run that has just ended. Any failure is one warning: the run is done without it."""
    try:
        from ddp_ft.reporting.writing import write_report

        lines = write_report(run, sources=sources)
    except Exception as error:  # of drawing libraries, of any kind
        lines = [f"Warning: the report could not be written. {typed_line(error)}", f"Try again: ddp-ft report {run}"]
    log("\n".join(lines))
