"""A run as one page: report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_ft.contracts import PROBE, LabelledSource
from ddp_ft.errors import printable, shortened
from ddp_ft.reporting.choice import describe_views, model_rows
from ddp_ft.reporting.class_table import class_counts
from ddp_ft.reporting.facts import SPLITS, RunFacts
from ddp_ft.reporting.formats import brief, metric_name, moment, noun_of
from ddp_ft.reporting.reproduce import start_command
from ddp_ft.reporting.set_section import TITLES, Intervals, open_set, result, scored_section
from ddp_ft.reporting.svg_charts import curves
from ddp_ft.reporting.template import render
from ddp_ft.texts import count, percent, plural
from ddp_ft.training.plan import GRADES

# Parts of the time that are too short to be seen have no line.
_LEAST_SHARE = 0.001

MOST_DAMAGED, MOST_STARTS, SHOWN_NAMES = 100, 50, 12
# The share of the training time from which on waiting for images is worth a note.
_LONG_WAIT = 0.1

Sources = Mapping[str, LabelledSource]


def report_page(facts: RunFacts, found: Intervals, sources: Sources | None = None, data: Path | None = None) -> str:
    """The page as HTML. `found` are the intervals of each set's metrics; `sources` and `data` as in `open_set`."""
    # The test set had no part in choosing the model, so it comes first.
    order = sorted(facts.scored_sets, key=lambda split: split != "test")
    opened = {split: open_set(facts, split, sources, data) for split in order}
    return render(
        "report.html",
        noun=noun_of(facts.description),
        title=f"{facts.config.model.name} on {facts.data_name}",
        name=facts.name,
        state=_state(facts),
        results=_results(facts, found),
        metrics=_metric_rows(facts, found),
        caveats=_caveats(facts),
        trained=_what_was_trained(facts),
        class_counts=class_counts(facts),
        curves=curves(facts),
        has_restarts=len(facts.starts) > 1,
        sets=[each for split in order if (each := scored_section(facts, split, opened[split]))],
        spent=spent_time(facts.summary),
        notes=_notes(facts),
        damaged=[[printable(part) for part in row] for row in facts.damaged[:MOST_DAMAGED]],
        more_damaged=max(0, len(facts.damaged) - MOST_DAMAGED),
        machine=_machine(facts),
        starts=_starts(facts),
        settings=(facts.path / "config.yaml").read_text(encoding="utf-8"),
    )


def _state(facts: RunFacts) -> str:
    """The progress of the run in one line."""
    trained = [row for row in facts.rows if row.get("phase") != PROBE]
    step = facts.summary.get("step", max((row["step"] for row in trained), default=0))
    epoch = facts.summary.get("epoch", max((row["epoch"] for row in trained), default=0.0))
    total = facts.plan.total_steps
    where = f"{epoch:.4g} of {plural(facts.epochs, 'epoch')}, step {count(step)} of {count(total)}"
    if facts.status not in ("done", "stopped"):
        return f"Not finished: {where}."
    if facts.status == "stopped":
        return f"Stopped after {where}; the same command resumes."
    reason = " by early stopping" if facts.summary.get("stopped_early") and step < total else ""
    if not reason and step < total and facts.config.train.max_minutes:
        reason = f", its schedule shortened by --max-minutes {facts.config.train.max_minutes:g},"
    return f"Done{reason} after {where}."


def _results(facts: RunFacts, found: Intervals) -> list[dict[str, Any]]:
    """The deciding metric on each set, test first."""
    return [
        {
            "set": TITLES[split],
            "metric": metric_name(facts.metric),
            "result": result(facts, found, split, facts.metric),
            "samples": len(facts.scored_sets.get(split, ())),
        }
        for split in reversed(SPLITS)
        if facts.metric in facts.metrics(split)
    ]


def _metric_rows(facts: RunFacts, found: Intervals) -> dict[str, Any]:
    splits = [split for split in reversed(SPLITS) if facts.metrics(split)]
    names = list(dict.fromkeys(name for split in splits for name in facts.metrics(split)))
    rows = [
        {
            "name": metric_name(printable(name)),
            "decides": name == facts.metric,
            "cells": [result(facts, found, split, name) for split in splits],
        }
        for name in sorted(names, key=lambda name: name != facts.metric)
    ]
    return {"sets": [TITLES[split] for split in splits], "rows": rows}


def _caveats(facts: RunFacts) -> list[str]:
    """What the intervals do not cover."""
    noun = noun_of(facts.description)
    if not facts.scored_sets:
        return []
    lines = [
        f"95 % intervals: bootstrap over the {noun}s of the set; of a share of 0 or 100 % the exact one (Clopper and "
        "Pearson). They do not cover other seeds of the training."
    ]
    if describe_views(facts):
        lines.append(
            "The results on the validation set are of one pass of each image, by which the model was chosen; with its "
            "views at test time they are others (see below)."
        )
    if "test" not in facts.scored_sets:
        lines.append(
            "There is no test set: the validation set also selected the best model, so its result is slightly "
            "optimistic."
        )
    if facts.config.data.group:
        group = printable(facts.config.data.group)
        lines.append(f"Images of the same {group} are alike, which these intervals ignore: they are too narrow.")
    return lines


def _what_was_trained(facts: RunFacts) -> list[tuple[str, str]]:
    noun = noun_of(facts.description)
    config, plan = facts.config, facts.plan
    names = shortened([brief(name) for name in facts.names], SHOWN_NAMES)
    size = facts.description.get("preprocessing", {}).get("size")
    test = facts.scored_sets.get("test")
    several = f", {len(facts.names)} {facts.task.words.names}" if len(facts.names) > 1 else ""
    rows = {
        "Data": f"{config.data.path}: {count(plan.train_samples)} training, {count(plan.val_samples)} validation"
        + (f", {count(len(test))} test" if test else "")
        + f" {noun}s",
        "Task": f"{plan.task}{several}: {names}",
        "Model": f"{config.model.name}" + (f", input {size[0]} x {size[1]} pixels" if size else ""),
        "Initial weights": str(config.model.weights),
        "Recipe": f"{plan.recipe}; {config.optim.name}, learning rate {plan.lr:g}, schedule "
        f"{config.schedule.name}, {plan.precision}",
        "Steps": f"{count(plan.total_steps)} = {plural(facts.epochs, 'epoch')} x "
        f"{count(plan.steps_per_epoch)}, global batch size {config.train.batch_size}"
        + (f", chosen {plan.why_epochs}" if plan.why_epochs else ""),
        **model_rows(facts),
    }
    return [(name, printable(value)) for name, value in rows.items() if value]


def _notes(facts: RunFacts) -> list[str]:
    """Faults of the run, and what slows it down."""
    noun = noun_of(facts.description)
    summary, plan, notes = facts.summary, facts.plan, []
    if restarts := summary.get("restarts") or max(0, len(facts.starts) - 1):
        notes.append(f"The run was interrupted: {plural(restarts, 'restart')}.")
    if number := summary.get("bad_steps") or len(facts.bad_steps):
        kept = ", ".join(facts.bad_steps[:5])
        first = f" The first ones are in bad_batches/: {kept}." if kept else ""
        notes.append(f"{plural(number, 'step')} skipped, since the loss or gradient was not finite.{first}")
    if facts.damaged:
        notes.append(f"{plural(len(facts.damaged), f'damaged {noun}')} left out, listed below.")
    if plan.lowered:
        before, now = plan.lowered
        notes.append(f"A process ran out of memory; micro-batches were lowered from {before} to {now} {noun}s.")
    if (summary.get("data_wait_share") or 0) > _LONG_WAIT:
        notes.append(
            f"Steps waited for data in {percent(summary['data_wait_share'])} of the training time: more workers "
            "(--workers), smaller files or a faster disk would speed it up."
        )
    if (facts.path / "stacks").is_dir() and any((facts.path / "stacks").iterdir()):
        notes.append("A process hung or died, and its stacks were written to stacks/.")
    if len({start.get("world_size") for start in facts.starts}) > 1:
        notes.append("The number of processes changed during the run (see the list of starts).")
    return notes


def _machine(facts: RunFacts) -> list[tuple[str, str]]:
    """Hardware and versions of the newest start."""
    plan = facts.plan
    rows = {
        "Processes": f"{plan.world_size} x {plan.device}, {plural(plan.threads, 'thread')} and "
        f"{plural(plan.workers, 'loader worker')} each",
        "Grade": f"a ({GRADES['a']}) on the same number of processes and kind of device, "
        f"{plan.grade_elsewhere} ({GRADES[plan.grade_elsewhere]}) on another",
    }
    if not facts.starts:
        return list(rows.items())
    newest = facts.starts[-1]
    gpus, git = newest.get("gpus") or [], newest.get("git") or {}
    kinds = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    changes = ", with changes that are not committed" if git.get("changed") else ""
    rows |= {
        "Machines": f"{plural(newest.get('nodes', 1), 'node')} with {plural(newest.get('cores', 1), 'usable core')} of "
        f"{newest.get('cpu', '?')}" + (f" and {kinds}" if kinds else ""),
        "System": f"{newest.get('system', '?')}, Python {newest.get('python', '?')}",
        "Versions": ", ".join(f"{name} {version}" for name, version in newest.get("versions", {}).items()),
        "Commit": f"{git.get('commit', '?')}{changes}" if git else "not in a git repository",
        "Command": start_command(newest),
    }
    return [(name, printable(str(value))) for name, value in rows.items() if value]


def _starts(facts: RunFacts) -> list[dict[str, str]]:
    """The starts of a run that had several, newest last."""
    if len(facts.starts) < 2:
        return []
    return [
        {
            "time": moment(float(start.get("time", 0))),
            "processes": str(start.get("world_size", "?")),
            "version": str(start.get("versions", {}).get("torch", "?")),
            "commit": str((start.get("git") or {}).get("commit", ""))[:10],
            "command": printable(start_command(start)),
        }
        for start in facts.starts[-MOST_STARTS:]
    ]


def spent_time(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of the wall time (name, seconds, share), and the speed; None if the run has not written them."""
    wall = float(summary.get("wall_seconds") or 0)
    if not wall or "train_seconds" not in summary:
        return None
    trained = float(summary["train_seconds"])
    waited = min(trained, float(summary.get("data_wait_share") or 0) * trained)
    saved = sum(float(summary.get(name) or 0) for name in ("save_copy_seconds", "save_stall_seconds"))
    parts = {
        "training steps": trained - waited,
        "waiting for data": waited,
        "checkpoints": saved,
        "compiling": float(summary.get("compile_seconds") or 0),
    }
    parts["evaluation, probe, start-up and other"] = max(0.0, wall - sum(parts.values()))
    rows = [(name, seconds, seconds / wall) for name, seconds in parts.items() if seconds / wall >= _LEAST_SHARE]
    tokens = [summary[name] for name in ("tokens_per_second", "padding_share") if summary.get(name) is not None]
    return {"wall": wall, "parts": rows, "speed": float(summary.get("images_per_second") or 0), "tokens": tokens}
