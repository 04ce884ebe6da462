"""`ddp-ft submit`: a batch script for Slurm, printed or submitted."""

import subprocess
from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.options import PATH
from ddp_ft.cli.output import print_note, print_result
from ddp_ft.errors import EXIT_DONE, UserError
from ddp_ft.slurm.job import read_runs
from ddp_ft.slurm.sbatch import KINDS, LaunchPlan, check, check_arguments, render
from ddp_ft.slurm.walltime import DEFAULT_LEAD


def _whole_array(runs: Path) -> str:
    count = len(read_runs(runs))
    if not count:
        raise UserError(f"The file of runs {runs} has none.", "Each line has the options of one run.")
    return f"1-{count}"


def _kind_of(nodes: int, runs: Path | None) -> str:
    return "array" if runs else "multi_node" if nodes > 1 else "single_node"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--kind", type=click.Choice(KINDS), help="[default: by --nodes and --runs]")
@click.option("--name", default="ddp_ft", show_default=True, help="Name of the job.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes.")
@click.option("--processes", type=click.IntRange(min=1), help="Processes of a node.  [default: a process a GPU]")
@click.option("--cpus", type=click.IntRange(min=1), help="Cores of a node.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of a node.")
@click.option("--memory", help="Memory of a node, such as 64G.")
@click.option("--time", help="Time limit, such as 8:00:00 or 2-12; the job saves before it and requeues itself.")
@click.option("--partition", help="Where to run.")
@click.option("--account", help="The account to charge.")
@click.option("--qos", help="Quality of service.")
@click.option("--output", help="The job's log, as sbatch names it.")
@click.option(
    "--lead", type=click.IntRange(min=1), default=DEFAULT_LEAD, show_default=True,
    help="Seconds before the end at which the job saves.",
)  # fmt: skip
@click.option("--requeue/--no-requeue", default=True, help="Requeue the job, or end with exit code 75.")
@click.option("--runs", type=PATH, help="A file with a run's options on each line: makes an array.")
@click.option("--array", help="Which of --runs, as sbatch writes it, such as 1-9%3.  [default: all]")
@click.option("--python", help="The job's interpreter.  [default: that of the PATH]")
@click.option("--sbatch", "options", multiple=True, metavar="OPTION", help="Any other option of sbatch. Repeatable.")
@click.option("--submit", "really", is_flag=True, help="Submit it; else the script is only printed.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="TRAIN_ARGUMENTS...")
def submit(kind: str | None, nodes: int, runs: Path | None, array: str | None, really: bool, **given: Any) -> int:
    """Print a batch script for Slurm; with --submit, submit it.

    Options that this command does not have go to train, and so does everything after --.
    """
    array = array or (_whole_array(runs) if runs else None)
    plan = LaunchPlan(kind=kind or _kind_of(nodes, runs), nodes=nodes, runs=runs, array=array, **given)
    check(plan)
    check_arguments(plan)
    if not really:
        print_result(render(plan).rstrip("\n"))
        click.echo("Not submitted: add --submit for that.", err=True)
        return EXIT_DONE
    _check_log(plan.output)
    return _sbatch(render(plan))


def _check_log(output: str | None) -> None:
    """Slurm silently ends a job whose log it cannot open. A folder with a pattern is known to Slurm alone."""
    folder = Path(output or "log").absolute().parent
    if "%" not in str(folder) and not folder.is_dir():
        raise UserError(f"--output {output}: there is no folder {folder}.", "Make it: Slurm cannot, and the job fails.")


def _sbatch(text: str) -> int:
    try:
        done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise UserError("There is no sbatch on this machine.", "Submit from a login node of the cluster.") from None
    if done.returncode:
        hint = "Without --submit the script is only printed."
        raise UserError(f"sbatch refused the job: {done.stderr.strip()}", hint)
    print_note(done.stdout.strip())
    return EXIT_DONE
