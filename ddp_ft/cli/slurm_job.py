"""`python -m ddp_ft.cli.slurm_job`: what a batch script asks Python. The scripts use it; see docs/slurm.md."""

import json
import re
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.process import run_command
from ddp_ft.errors import UserError
from ddp_ft.slurm.requeue import History, Outcome, decide
from ddp_ft.slurm.walltime import earliest_stop, read_end_time

FIRST_PORT, PORTS_OF_A_JOB, PORT_BLOCKS = 20000, 4, 3000


@click.group()
def slurm_job() -> None:
    """What the batch scripts of ddp_ft ask on the first node of their job."""


@slurm_job.command()
def script() -> None:
    """Print the part that all batch scripts share."""
    click.echo((files("ddp_ft") / "slurm" / "job.sh").read_text(encoding="utf-8"))


@slurm_job.command()
@click.argument("nodelist")
@click.argument("job", type=int)
def rendezvous(nodelist: str, job: int) -> None:
    """Print HOST:PORT, where the nodes of this job meet."""
    click.echo(f"{first_host(nodelist)}:{free_port(job)}")


def first_host(nodelist: str) -> str:
    """The first name of Slurm's list of hosts: "rack[2-3]n[07,09],login" -> "rack2n07"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        raise UserError(f"SLURM_JOB_NODELIST={nodelist!r} is not a list of hosts.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def free_port(job: int) -> int:
    """A free TCP port of this host. Jobs have ports of their own, so two that start at once do not take the same."""
    first = FIRST_PORT + job % PORT_BLOCKS * PORTS_OF_A_JOB
    for port in range(first, first + PORTS_OF_A_JOB):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(
        f"Ports {first} to {first + PORTS_OF_A_JOB - 1} of {socket.gethostname()}, those of job {job}, are all taken."
    )


@slurm_job.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("task", type=int)
def array(file: Path, task: int) -> None:
    """Print the words of the line of FILE that belongs to an array's task, with a NUL behind each."""
    sys.stdout.write("".join(f"{word}\0" for word in words_of_run(file, task)))


def read_runs(file: Path) -> list[str]:
    """The lines of a file of runs; empty ones and those that begin with # do not count."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file of runs {file} cannot be read: {error}.") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def words_of_run(file: Path, task: int) -> list[str]:
    """The words of the run with that number, counted from 1; quoted as in a shell, where nothing is expanded."""
    lines = read_runs(file)
    if not 1 <= task <= len(lines):
        raise UserError(
            f"Array task {task}: {file} has runs 1 to {len(lines)}.", f"Submit it with sbatch --array=1-{len(lines)}."
        )
    try:
        return shlex.split(lines[task - 1])
    except ValueError as error:
        raise UserError(f"{file}, run {task}: {error}: {lines[task - 1]}") from None


@dataclass(frozen=True)
class Mark:
    """What the run folder held when this start began, by which its progress is told; and the crashes before."""

    summary: int  # time of change of summary.json, in nanoseconds; 0 if there is none
    lease: Any  # "started" of lease.json
    newest: str  # the newest checkpoint
    barren: int = 0
    crashes: int = 0


def read_mark(run_dir: Path, history: History) -> Mark:
    """The mark of the run folder as it is."""
    summary, last = run_dir / "summary.json", run_dir / "checkpoints" / "last"
    return Mark(
        summary.stat().st_mtime_ns if summary.exists() else 0,
        _read_json(run_dir / "lease.json").get("started"),
        str(last.readlink()) if last.is_symlink() else "",
        **asdict(history),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mark_file(run_dir: Path, job: str) -> Path:
    return run_dir / f".slurm-{job}.json"


@slurm_job.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("job")
def begin(run_dir: Path, job: str) -> None:
    """Note what the run folder holds. Print the time (seconds since 1970) before which no warning is heeded."""
    file = _mark_file(run_dir, job)
    stored = _read_json(file)
    history = History(stored.get("barren", 0), stored.get("crashes", 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(read_mark(run_dir, history))), encoding="utf-8")
    click.echo(round(earliest_stop(time.time(), read_end_time())))


@slurm_job.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("job")
@click.option("--code", type=int, required=True, help="Exit code of the job step.")
@click.option("--stop-file", type=click.Path(path_type=Path), required=True)
@click.option("--reason", default="", help="Why Slurm ends the job.")
@click.option("--restarts", type=int, default=0)
@click.option("--most-restarts", type=int, default=100)
def verdict(
    run_dir: Path, job: str, code: int, stop_file: Path, reason: str, restarts: int, most_restarts: int
) -> None:
    """Print `requeue` or `end`, and the exit code if it is not requeued."""
    file = _mark_file(run_dir, job)
    before = Mark(**{"summary": 0, "lease": None, "newest": "", **_read_json(file)})
    history = History(before.barren, before.crashes)
    found = decide(read_outcome(run_dir, before, code, stop_file, reason), history, restarts, most_restarts)
    click.echo(f"{found.message}; {run_dir}", err=True)
    if found.code == 0:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(asdict(found.history)), encoding="utf-8")
    click.echo(f"{'requeue' if found.requeue else 'end'} {found.code}")


def read_outcome(run_dir: Path, before: Mark, code: int, stop_file: Path, reason: str) -> Outcome:
    """How the start that began with that mark ended, from its run folder."""
    after, lease = read_mark(run_dir, History()), _read_json(run_dir / "lease.json")
    status = _read_json(run_dir / "summary.json").get("status", "")
    if after.summary == before.summary and not (status == "done" and code == 0):
        status = ""  # an earlier start's; a finished run that is started again leaves it as it is
    events = stop_file.read_text(encoding="utf-8").splitlines() if stop_file.exists() else []
    new_lease = after.lease != before.lease
    return Outcome(
        code, status, tuple(events),
        made_step=new_lease and lease.get("step", 0) > lease.get("first_step", 0),
        new_checkpoint=after.newest != before.newest,
        reason=reason,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(slurm_job)
