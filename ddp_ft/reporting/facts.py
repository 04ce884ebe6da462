"""All facts about a run from its folder, read without running any code of others."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import TRAIN, Processor, Task
from ddp_ft.data.bad_samples.quarantine import read_quarantine
from ddp_ft.data.processors import processor_from
from ddp_ft.errors import UserError, printable, shortened, typed_line
from ddp_ft.run_folder.bad_batches import FOLDER as BAD_BATCHES
from ddp_ft.run_folder.evaluations import load_evaluation
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import kept_in, read_description
from ddp_ft.run_folder.provenance import read_starts
from ddp_ft.tasks.registry import restore_without_code
from ddp_ft.tasks.scored.base import ScoredSet
from ddp_ft.training.plan import Plan, read_plan

Row = dict[str, Any]
SPLITS = ("val", "test")
_NOWHERE = {"step": 0, "epoch": 0.0, "phase": TRAIN}
_BOOKKEEPING = ("step", "epoch", "split", "phase", "time")
_RUN = "Expected the folder that `train --run-dir` wrote, such as runs/NAME."
_WHOLE = "Is the folder whole?"


@dataclass(frozen=True)
class RunFacts:
    """The content of a run folder. What an unfinished run has not written yet is empty.

    `rows` are those of metrics.jsonl, `starts` those of provenance.json, `description` is model.json, `split` is
    split.json. `task` has no losses and metrics of the user's own. `damaged` holds path, split, reason of each image.
    """

    path: Path
    config: RunConfig
    plan: Plan
    names: tuple[str, ...]
    task: Task
    rows: list[Row]
    summary: dict[str, Any]
    starts: list[dict[str, Any]]
    description: dict[str, Any]
    split: dict[str, Any]
    scored_sets: dict[str, ScoredSet]
    damaged: list[list[str]]
    bad_steps: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return printable(self.path.resolve().name)

    @property
    def data_name(self) -> str:
        """The name of the folder or table of its data."""
        path = self.config.data.path
        return printable(path.resolve().name) if path else "data"

    @property
    def epochs(self) -> int:
        """The epochs that were asked for, or that auto became."""
        return self.config.train.epochs or self.plan.epochs

    @property
    def status(self) -> str:
        """ "done", "stopped", or "unfinished" if it is running or was killed."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.config.eval.metric or self.task.primary_metric

    @cached_property
    def higher_is_better(self) -> bool:
        """Whether more of that metric is better; for the user's own metric, what the run's best model shows."""
        try:
            return self.task.higher_is_better(self.metric)
        except UserError:
            values = [each for row in self.evaluations if (each := row.get(self.metric)) is not None]
            return not values or self.summary.get("val", {}).get(self.metric, max(values)) > min(values)

    @property
    def evaluations(self) -> list[Row]:
        """The rows of the validation set."""
        return [row for row in self.rows if row["split"] == "val"]

    @cached_property
    def best(self) -> dict[str, Any]:
        """The best evaluation: "metrics", "step", "epoch" and "phase"; empty before the first."""
        if self.summary.get("val"):
            place = {name: self.summary.get(f"best_{name}", nothing) for name, nothing in _NOWHERE.items()}
            return {"metrics": self.summary["val"], **place}
        scored = [row for row in self.evaluations if row.get(self.metric) is not None]
        if not scored:
            return {}
        row = (max if self.higher_is_better else min)(scored, key=lambda row: row[self.metric])
        metrics = {name: value for name, value in row.items() if name not in _BOOKKEEPING}
        return {"metrics": metrics, "step": row["step"], "epoch": row["epoch"], "phase": row.get("phase", TRAIN)}

    @property
    def processor(self) -> Processor | None:
        """How the model sees an image; None if there is no model yet."""
        return (
            processor_from(self.description["preprocessing"], kept_in(self.path / "best")) if self.description else None
        )

    def metrics(self, split: str) -> dict[str, float]:
        """The best model's metrics on "val" or "test"."""
        found = self.best.get("metrics", {}) if split == "val" else self.summary.get("test", {})
        return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def read_run(path: Path) -> RunFacts:
    """The facts of a run folder. UserError if it is none, or if its files cannot be read."""
    folder = RunFolder(path)
    if not (path / "config.yaml").is_file() or not (path / "plan.json").is_file():
        what = "is no run folder: it has no config.yaml or no plan.json" if path.is_dir() else "is not there"
        inside = sorted(str(file.parent) for file in path.glob("*/config.yaml")) if path.is_dir() else []
        hint = f"Name one of its runs, or several: {shortened(inside)}." if inside else _RUN
        raise UserError(f"{path} {what}.", hint)
    try:
        return _read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a run folder: {typed_line(error)}", _WHOLE) from None


def _read(folder: RunFolder) -> RunFacts:
    path = folder.path
    config, plan = folder.stored_config(), read_plan(folder)
    assert config is not None and plan is not None
    description = read_description(folder.best) if (folder.best / "model.json").exists() else {}
    summary = folder.summary()
    names = tuple(map(str, folder.classes() or description.get("classes", [])))
    if description:
        if tuple(description["classes"]) != names:
            raise UserError(f"{path}: classes.json and best/model.json name other classes.", _WHOLE)
        processor_from(description["preprocessing"], kept_in(folder.best))
    try:
        task = restore_without_code(plan.task, names, description.get("task_settings", {}))
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from None
    found = {split: each for split in SPLITS if (each := _scored_set(path, split, task))}
    return RunFacts(
        path=path,
        config=config,
        plan=plan,
        names=names,
        task=task,
        rows=folder.rows(),
        summary=summary,
        starts=read_starts(path),
        description=description,
        split=folder.split() or {},
        scored_sets=found,
        damaged=read_quarantine(path),
        bad_steps=sorted(each.name for each in (path / BAD_BATCHES).glob("step_*")),
    )


def _scored_set(path: Path, split: str, task: Task) -> ScoredSet | None:
    evaluation = load_evaluation(path, split, task)
    if evaluation is None:
        return None
    assert evaluation.predictions is not None and evaluation.records is not None
    try:
        return task.scored_set(evaluation.predictions, evaluation.records)
    except UserError as error:
        raise UserError(f"{path}: what is kept of {split} is {error.message}", _WHOLE) from None
