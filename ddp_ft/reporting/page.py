"""A run as one page: report.html."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_ft.contracts import PROBE, LabelledSource
from ddp_ft.errors import printable
from ddp_ft.evaluation.intervals import Interval
from ddp_ft.reporting.evaluated_samples import UNREADABLE, open_evaluated, read_error
from ddp_ft.reporting.facts import SPLITS, RunFacts
from ddp_ft.reporting.formats import (
    brief,
    count,
    duration,
    interval_text,
    metric_name,
    metric_text,
    moment,
    number_text,
    plural,
)
from ddp_ft.reporting.set_section import TITLES, Opened, judged_set
from ddp_ft.reporting.svg_charts import curves
from ddp_ft.reporting.template import render

# Parts that are too short to be seen have no line of their own.
_LEAST_SHARE = 0.001

MOST_DAMAGED, MOST_STARTS, SHOWN_NAMES = 100, 50, 12
# A step that waits longer than that share of its time for its images is slowed down by them.
_LONG_WAIT = 0.1

Intervals = Mapping[str, Mapping[str, Interval]]
Sources = Mapping[str, LabelledSource]


def report_page(facts: RunFacts, found: Intervals, sources: Sources | None = None, data: Path | None = None) -> str:
    """The page as HTML. `found` are the intervals of each set's metrics.

    Thumbnails are made from `sources`, the sets as the run has them open; where that is None they are opened again,
    from `data` or from where they were.
    """
    opened = {split: _open(facts, split, sources, data) for split in facts.scored_sets}
    # The test set had no part in choosing the model, so it is what counts where there is one.
    order = sorted(facts.scored_sets, key=lambda split: split != "test")
    return render(
        "report.html",
        title=f"{facts.config.model.name} on {_data_name(facts)}",
        name=facts.name,
        state=_state(facts),
        results=_results(facts, found),
        metrics=_metric_rows(facts, found),
        caveats=_caveats(facts),
        trained=_what_was_trained(facts),
        curves=curves(facts),
        has_restarts=len(facts.starts) > 1,
        sets=[each for split in order if (each := judged_set(facts, split, opened[split]))],
        spent=spent_time(facts.summary),
        notes=_notes(facts),
        damaged=[[printable(part) for part in row] for row in facts.damaged[:MOST_DAMAGED]],
        more_damaged=max(0, len(facts.damaged) - MOST_DAMAGED),
        machine=_machine(facts),
        starts=_starts(facts),
        settings=_settings(facts),
    )


def _open(facts: RunFacts, split: str, sources: Sources | None, data: Path | None) -> Opened:
    if sources is not None:
        return Opened(sources.get(split))
    try:
        return Opened(open_evaluated(facts, split, data))
    except UNREADABLE as error:
        return Opened(None, read_error(error))


def _data_name(facts: RunFacts) -> str:
    path = facts.config.data.path
    return printable(path.resolve().name) if path else "?"


def _state(facts: RunFacts) -> str:
    """One line: how far the run is."""
    trained = [row for row in facts.rows if row.get("phase") != PROBE]
    step = facts.summary.get("step", max((row["step"] for row in trained), default=0))
    epoch = facts.summary.get("epoch", max((row["epoch"] for row in trained), default=0.0))
    total = facts.plan.total_steps
    where = f"{epoch:g} of {facts.config.train.epochs} epochs, step {count(step)} of {count(total)}"
    if facts.status == "done" and facts.summary.get("stopped_early"):
        return f"Done: stopped early, as nothing was gained any more, after {where}."
    told = {"done": "Done", "stopped": "Stopped, to be gone on with,"}.get(facts.status, "Not finished:")
    return f"{told} after {where}." if facts.status != "unfinished" else f"{told} {where}."


def _results(facts: RunFacts, found: Intervals) -> list[dict[str, str]]:
    """The deciding metric on each set, test first."""
    results = []
    for split in reversed(SPLITS):
        metrics = facts.metrics(split)
        if facts.metric not in metrics:
            continue
        scored_set = facts.scored_sets.get(split)
        results.append(
            {
                "set": TITLES[split],
                "metric": metric_name(facts.metric),
                "value": metric_text(facts.metric, metrics[facts.metric]),
                "interval": interval_text(facts.metric, found.get(split, {}).get(facts.metric)),
                "samples": plural(len(scored_set), "image") if scored_set else "",
            }
        )
    return results


def _metric_rows(facts: RunFacts, found: Intervals) -> dict[str, Any]:
    splits = [split for split in reversed(SPLITS) if facts.metrics(split)]
    names = list(dict.fromkeys(name for split in splits for name in facts.metrics(split)))
    names.sort(key=lambda name: name != facts.metric)
    rows = [
        {
            "name": metric_name(printable(name)),
            "decides": name == facts.metric,
            "cells": [
                (metric_text(name, facts.metrics(split).get(name)), interval_text(name, found.get(split, {}).get(name)))
                for split in splits
            ],
        }
        for name in names
    ]
    return {"sets": [TITLES[split] for split in splits], "rows": rows}


def _caveats(facts: RunFacts) -> list[str]:
    """What the intervals do not say."""
    if not facts.scored_sets:
        return []
    told = ["Intervals are of 95 %, by drawing the images of the set again; other seeds would move the result too."]
    if "test" not in facts.scored_sets:
        told.append(
            "There is no test set: the validation set also chose the best of the evaluations, so its result is a "
            "little too good."
        )
    if facts.config.data.group:
        told.append(
            f"Images of one {printable(facts.config.data.group)} are alike, which these intervals do not know of: "
            "they are too narrow."
        )
    return told


def _what_was_trained(facts: RunFacts) -> list[tuple[str, str]]:
    config, plan = facts.config, facts.plan
    names = [brief(name) for name in facts.names]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    size = facts.description.get("preprocessing", {}).get("size")
    best = facts.best
    test = facts.scored_sets.get("test")
    rows = {
        "Data": f"{config.data.path}: {count(plan.train_samples)} images to train on, "
        f"{count(plan.val_samples)} for validation" + (f", {count(len(test))} for the test" if test else ""),
        "Task": f"{plan.task}, {len(names)} {facts.task.words.names}: {', '.join(names[:SHOWN_NAMES])}{more}",
        "Model": f"{config.model.name}" + (f", input {size[0]} x {size[1]} pixels" if size else ""),
        "Weights to start from": str(config.model.weights),
        "Recipe": f"{plan.recipe}; {config.optim.name}, learning rate {plan.lr:g}, schedule "
        f"{config.schedule.name}, {plan.precision}",
        "Steps": f"{count(plan.total_steps)} = {plural(config.train.epochs, 'epoch')} x "
        f"{count(plan.steps_per_epoch)}, {config.train.batch_size} images each",
        "Best model": _best(best),
    }
    return [(name, printable(value)) for name, value in rows.items() if value]


def _best(best: Mapping[str, Any]) -> str:
    if not best:
        return ""
    return "after the probe" if best["phase"] == PROBE else f"after epoch {best['epoch']:g}, step {count(best['step'])}"


def _notes(facts: RunFacts) -> list[str]:
    """What went otherwise than smoothly, and what slows the run down."""
    summary, plan, notes = facts.summary, facts.plan, []
    restarts = summary.get("restarts") or max(0, len(facts.starts) - 1)
    if restarts:
        notes.append(f"The run was interrupted and started again: {plural(restarts, 'restart')}.")
    if summary.get("bad_steps") or facts.bad_steps:
        number = summary.get("bad_steps") or len(facts.bad_steps)
        first = (
            f" The first ones are kept in bad_batches/: {', '.join(facts.bad_steps[:5])}." if facts.bad_steps else ""
        )
        notes.append(f"{plural(number, 'step')} whose loss or gradient was not finite had no effect.{first}")
    if facts.damaged:
        notes.append(f"The run went on without {plural(len(facts.damaged), 'damaged image')}, listed below.")
    if plan.lowered:
        before, now = plan.lowered
        notes.append(f"A process ran out of memory; micro-batches were lowered from {before} to {now} images.")
    if (summary.get("data_wait_share") or 0) > _LONG_WAIT:
        notes.append(
            f"Steps waited for their images in {summary['data_wait_share']:.0%} of the training time: more workers "
            "(--workers), smaller files or a faster disk would speed it up."
        )
    if (facts.path / "stacks").is_dir() and any((facts.path / "stacks").iterdir()):
        notes.append("A process hung or died, and its stacks were written to stacks/.")
    if len({start.get("world_size") for start in facts.starts}) > 1:
        notes.append("The number of processes changed on the way (see the list of starts).")
    return notes


def _machine(facts: RunFacts) -> list[tuple[str, str]]:
    """Hardware and versions of the newest start."""
    plan = facts.plan
    rows = {"Processes": f"{plan.world_size} on {plan.device}, {plural(plan.threads, 'thread')} and "
            f"{plural(plan.workers, 'loader worker')} each"}  # fmt: skip
    rows["Grade"] = f"a on the same number of processes and kind of device, {plan.grade_elsewhere} on another"
    if not facts.starts:
        return list(rows.items())
    newest = facts.starts[-1]
    gpus = newest.get("gpus") or []
    kinds = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    versions = newest.get("versions", {})
    rows |= {
        "Machines": f"{newest.get('nodes', 1)}, each with {plural(newest.get('cores', 1), 'usable core')} of "
        f"{newest.get('cpu', '?')}" + (f" and {kinds}" if kinds else ""),
        "System": f"{newest.get('system', '?')}, Python {newest.get('python', '?')}",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Commit": _commit(newest.get("git")),
        "Command": shlex.join(map(str, newest.get("command", []))),
    }
    return [(name, printable(str(value))) for name, value in rows.items() if value]


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "the working folder was no git repository"
    return f"{git.get('commit', '?')}" + (", with changes that are not committed" if git.get("changed") else "")


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
            "command": printable(shlex.join(map(str, start.get("command", [])))),
        }
        for start in facts.starts[-MOST_STARTS:]
    ]


def _settings(facts: RunFacts) -> str:
    return (facts.path / "config.yaml").read_text(encoding="utf-8")


def spent_time(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of the wall time with their shares, and the speed; None where the run has not written them."""
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
    parts["evaluation, probe, first steps and the rest"] = max(0.0, wall - sum(parts.values()))
    rows = [
        {"name": name, "time": duration(seconds), "share": seconds / wall, "percent": f"{seconds / wall * 100:.1f}"}
        for name, seconds in parts.items()
        if seconds / wall >= _LEAST_SHARE
    ]
    speed = float(summary.get("images_per_second") or 0)
    return {"wall": duration(wall), "parts": rows, "speed": number_text(speed)}
