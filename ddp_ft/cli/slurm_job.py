"""`python -m ddp_ft.cli.slurm_job`: commands for the batch scripts; see docs/slurm.md."""

import json
import sys
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import click

from ddp_ft.cli.options import PATH
from ddp_ft.cli.output import check_printed, print_result
from ddp_ft.cli.process import run_command
from ddp_ft.files import read_sound_json
from ddp_ft.run_folder.contents import as_dataclass
from ddp_ft.slurm.job import Mark, first_host, free_port, read_mark, read_outcome, words_of_run
from ddp_ft.slurm.requeue import History, decide
from ddp_ft.slurm.walltime import earliest_stop, read_end_time


@click.group()
def slurm_job() -> None:
    """Commands that the batch scripts of ddp_ft call on the first node of their job."""


@slurm_job.command()
def script() -> None:
    """Print the part that all batch scripts share."""
    print_result((files("ddp_ft") / "slurm" / "job.sh").read_text(encoding="utf-8"))


@slurm_job.command()
@click.argument("nodelist")
@click.argument("job", type=int)
def rendezvous(nodelist: str, job: int) -> None:
    """Print HOST:PORT, where the nodes of this job meet."""
    print_result(f"{first_host(nodelist)}:{free_port(job)}")


@slurm_job.command()
@click.argument("file", type=PATH)
@click.argument("task", type=int)
def array(file: Path, task: int) -> None:
    """Print the words of the line of FILE that belongs to an array's task, with a NUL after each."""
    sys.stdout.write("".join(f"{word}\0" for word in words_of_run(file, task)))
    check_printed()


def _mark_file(run_dir: Path, job: str) -> Path:
    return run_dir / f".slurm-{job}.json"


@slurm_job.command()
@click.argument("run_dir", type=PATH)
@click.argument("job")
def begin(run_dir: Path, job: str) -> None:
    """Record what the run folder holds. Print the time (seconds since 1970) before which warnings are ignored."""
    file = _mark_file(run_dir, job)
    stored = as_dataclass(Mark, read_sound_json(file, dict)) or Mark()
    history = History(stored.barren, stored.crashes)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(read_mark(run_dir, history))), encoding="utf-8")
    print_result(str(round(earliest_stop(time.time(), read_end_time()))))


@slurm_job.command()
@click.argument("run_dir", type=PATH)
@click.argument("job")
@click.option("--code", type=int, required=True, help="Exit code of the job step.")
@click.option("--stop-file", type=PATH, required=True)
@click.option("--reason", default="", help="Why Slurm ends the job.")
@click.option("--restarts", type=int, default=0)
@click.option("--most-restarts", type=int, default=100)
def verdict(
    run_dir: Path, job: str, code: int, stop_file: Path, reason: str, restarts: int, most_restarts: int
) -> None:
    """Print `requeue` or `end`, and the exit code if it is not requeued."""
    file = _mark_file(run_dir, job)
    before = as_dataclass(Mark, read_sound_json(file, dict)) or Mark()
    history = History(before.barren, before.crashes)
    found = decide(read_outcome(run_dir, before, code, stop_file, reason), history, restarts, most_restarts)
    click.echo(f"{found.message}; {run_dir}", err=True)
    if found.code == 0:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(asdict(found.history)), encoding="utf-8")
    print_result(f"{'requeue' if found.requeue else 'end'} {found.code}")


if __name__ == "__main__":
    run_command(slurm_job)
