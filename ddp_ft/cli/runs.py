"""`ddp-ft runs`: the runs in a folder, from their small files alone."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from ddp_ft.cli.options import PathOf
from ddp_ft.cli.output import check_printed, json_text, print_result
from ddp_ft.config.tasks import TASKS
from ddp_ft.errors import UserError, printable, typed_line
from ddp_ft.run_folder.contents import read_content, read_summary, sound_rows
from ddp_ft.run_folder.lease import Holder, is_held, read_lease
from ddp_ft.tasks.metric_table import LOWER_IS_BETTER
from ddp_ft.texts import readable

RUNNING, DONE, STOPPED, CRASHED, FAILED, BROKEN = "running", "done", "stopped", "crashed", "failed", "broken"
# Only the end of metrics.jsonl is read: at least a hundred rows.
TAIL_BYTES = 1 << 16
_WIDEST = 1000


@dataclass(frozen=True)
class Run:
    """One row of the list; None is not in the run's files. `updated` is in seconds since 1970."""

    name: str
    state: str
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    metric: str | None = None
    best: float | None = None
    images_per_second: float | None = None
    updated: float = 0.0
    problem: str = ""
    failure: str = ""


@click.command()
@click.argument("folder", type=PathOf(path_type=Path, file_okay=False), default="runs")
@click.option("--json", "as_json", is_flag=True, help="For machines: a list of objects.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs) and below, the newest first."""
    if not folder.is_dir():
        hint = "Give the folder that holds the run folders: ddp-ft runs FOLDER"
        raise UserError(f"There is no folder {folder}.", hint)
    found = sorted((read_run(each, folder) for each in run_folders(folder)), key=lambda run: -run.updated)
    if as_json:
        print_result(json_text([asdict(run) for run in found]))
    elif not found:
        print_result(f"No runs in {folder}.")
    else:
        _print_table(found)


def run_folders(folder: Path) -> Iterator[Path]:
    """The folder and those below it that hold a run; folders inside a run are not searched."""
    try:
        if (folder / "config.yaml").exists() or (folder / "lease.json").exists():
            yield folder
            return
        inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # a folder of somebody else
        return
    for entry in inside:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from run_folders(folder / entry.name)


def read_run(path: Path, root: Path) -> Run:
    """The run in a folder; if its files are damaged, `state` is BROKEN and `problem` is the reason."""
    name = path.name if path == root else str(path.relative_to(root))
    try:
        return _read(path, name)
    except UserError as error:
        return Run(name, BROKEN, updated=_changed(path), problem=printable(f"{error.message} {error.hint}"))
    except Exception as error:  # files of others, or of a half-written disk, can be of any form
        return Run(name, BROKEN, updated=_changed(path), problem=printable(typed_line(error)))


def _read(path: Path, name: str) -> Run:
    lease = read_lease(path, strict=True) or Holder()
    plan, summary = read_content(path / "plan.json", dict) or {}, read_summary(path)
    state = _state(path, lease, summary)
    rows = [] if state in (DONE, STOPPED) and summary.get("val") else _last_rows(path / "metrics.jsonl")
    metric = _metric(path, plan, rows, summary.get("val", {}))
    last = rows[-1] if rows else {}
    speeds = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    return Run(
        name,
        state,
        step=summary.get("step", lease.step or last.get("step")),
        total_steps=total if isinstance(total := plan.get("total_steps"), int) else None,
        epoch=summary.get("epoch", last.get("epoch")),
        metric=metric,
        best=_best(rows, summary.get("val", {}), metric),
        images_per_second=summary.get("images_per_second") or (speeds[-1] if speeds else None),
        updated=lease.heartbeat or _changed(path),
        failure=printable(lease.failure) if state == FAILED else "",
    )


def _state(path: Path, lease: Holder, summary: dict[str, Any]) -> str:
    held = is_held(path)
    if held:
        return RUNNING
    if summary:
        return str(summary["status"])
    may_run = held is None or lease.host != socket.gethostname()  # on another machine, locks may have no effect
    return RUNNING if may_run and lease.is_alive else FAILED if lease.failure else CRASHED


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """The rows at the end of a metrics.jsonl, without those of a probe."""
    if not file.exists():
        return []
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    return [row for row in sound_rows(text) if row.get("phase", "train") == "train"]  # the first may be cut


def _metric(path: Path, plan: dict[str, Any], rows: list[dict[str, Any]], val: dict[str, Any]) -> str | None:
    """The metric that decides: as configured, else the task's own."""
    known = {*(rows[-1] if rows else ()), *val, *(name for row in rows if row["split"] == "val" for name in row)}
    entry = TASKS.get(plan.get("task", ""))
    name = _configured_metric(path / "config.yaml") or (entry and entry.metric)
    return name if name in known else None


def _configured_metric(file: Path) -> str | None:
    # PyYAML needs ten times as long for the whole file as everything else here.
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    line = next((line for line in lines if line.startswith("  metric:")), None)
    with suppress(yaml.YAMLError):
        value = yaml.safe_load(line)["metric"] if line else None
        return None if value is None else str(value)
    return None


def _best(rows: list[dict[str, Any]], val: dict[str, Any], metric: str | None) -> float | None:
    if metric is None:
        return None
    if metric in val:
        return float(val[metric])
    values = [row[metric] for row in rows if row["split"] == "val" and row.get(metric) is not None]
    return (min if metric.startswith(LOWER_IS_BETTER) else max)(values, default=None)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _print_table(found: list[Run]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = [Column(name, justify=side, no_wrap=name != "run", overflow="fold") for name, side in COLUMNS.items()]
    table = Table(*columns, box=SIMPLE, pad_edge=False)
    for run in found:
        table.add_row(*map(Text, _cells(run)))
    # In a file or a pipe, lines are as long as necessary.
    Console(emoji=False, width=None if sys.stdout.isatty() else _WIDEST).print(table)
    check_printed()
    for run in found:
        if run.problem:
            print_result(f"{printable(run.name)} cannot be read: {run.problem}")
        if run.failure:
            print_result(f"{printable(run.name)}: {run.failure}")


COLUMNS: dict[str, Any] = {
    "run": "left", "state": "left", "step": "right", "epoch": "right", "best": "left", "images/s": "right",
    "age": "right",
}  # fmt: skip


def _cells(run: Run) -> list[str]:
    step = "" if run.step is None else str(run.step)
    return [
        printable(run.name),
        run.state,
        f"{step}/{run.total_steps}" if run.total_steps is not None else step,
        "" if run.epoch is None else f"{run.epoch:.2f}",
        "" if run.best is None else f"{run.metric} {readable(run.best)}",
        "" if run.images_per_second is None else readable(run.images_per_second),
        _age(time.time() - run.updated),
    ]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
