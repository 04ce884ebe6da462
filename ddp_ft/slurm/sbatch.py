"""A batch script for Slurm, from a plan of the job."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.errors import UserError
from ddp_ft.slurm.job import read_runs, words_of_run
from ddp_ft.slurm.walltime import DEFAULT_LEAD

KINDS = ("single_node", "multi_node", "preemptible", "array")
TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}|UNLIMITED|infinite)")
MEMORY = re.compile(r"\d+[KMGT]?")
# The same as at the end of each of slurm/*.sbatch: python, and the part that all scripts share.
LAST_LINES = """\
trap 'ddp_ft_warned=yes' USR1 USR2 # a warning must not end what has just begun; ddp_ft_job heeds it
PYTHON=${DDP_FT_PYTHON:-$(command -v python || echo python3)}
ddp_ft=$("$PYTHON" -m ddp_ft.cli.slurm_job script) || {
  echo "error: '$PYTHON' does not run ddp_ft; activate its environment before sbatch, or set DDP_FT_PYTHON." >&2
  exit 2
}
eval "$ddp_ft"
"""


@dataclass(frozen=True)
class LaunchPlan:
    """A batch job: its requests to Slurm, and the arguments of train. None leaves a value to Slurm or the script."""

    arguments: tuple[str, ...]
    kind: str = "single_node"
    name: str = "ddp_ft"
    nodes: int = 1
    processes: int | None = None  # of a node
    cpus: int | None = None  # of a node
    gpus: int | None = None  # of a node
    memory: str | None = None  # of a node
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    output: str | None = None
    lead: int = DEFAULT_LEAD
    requeue: bool = True
    runs: Path | None = None  # array: the file of runs
    array: str | None = None  # array: which of them, as 1-3%2
    python: str | None = None
    options: tuple[str, ...] = ()  # any others of sbatch


def render(plan: LaunchPlan) -> str:
    """The complete batch script of a plan: sbatch needs no further option, and the script no argument."""
    requests = [f"#SBATCH {shlex.quote(option)}" for option in sbatch_options(plan)]
    settings = [f"export {name}={shlex.quote(value)}" for name, value in _settings(plan).items()]
    words = [str(plan.runs.absolute())] if plan.runs else []
    call = " ".join(shlex.quote(word) for word in ["ddp_ft_job", plan.kind, *words, *plan.arguments])
    return "\n".join(["#!/usr/bin/env bash", *requests, *settings, "", f"{LAST_LINES}{call}", ""])


def sbatch_options(plan: LaunchPlan) -> list[str]:
    """The options of sbatch for a plan."""
    given = {
        "job-name": plan.name,
        "nodes": plan.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": plan.cpus,
        "gpus-per-node": plan.gpus,
        "mem": plan.memory,
        "time": plan.time,
        "partition": plan.partition,
        "account": plan.account,
        "qos": plan.qos,
        "array": plan.array,
        "output": plan.output,
        "signal": f"B:USR2@{plan.lead}",
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*options, "--requeue" if plan.requeue else "--no-requeue", *plan.options]


def _settings(plan: LaunchPlan) -> dict[str, str]:
    given = {
        "DDP_FT_LEAD": str(plan.lead),
        "NPROC_PER_NODE": str(plan.processes or ""),
        "DDP_FT_REQUEUE": "" if plan.requeue else "exit",
        "DDP_FT_PYTHON": plan.python or "",
    }
    return {name: value for name, value in given.items() if value}


def check(plan: LaunchPlan) -> None:
    """UserError for a plan that no cluster could run."""
    _check_words(plan)
    if plan.kind == "single_node" and plan.nodes != 1:
        raise UserError(f"--kind single_node on {plan.nodes} nodes.", "Leave --kind out, or give --kind multi_node.")
    if (plan.kind == "array") != (plan.runs is not None):
        raise UserError(
            f"--kind {plan.kind} {'with' if plan.runs else 'without'} --runs.",
            "--runs FILE, a file of runs, one a line, is for --kind array, which needs it.",
        )
    if not plan.arguments and plan.kind != "array":
        raise UserError(
            "Nothing to train: the arguments of train are missing.",
            "Give them after --, such as: ddp-ft submit --gpus 4 -- --data ~/pets --model timm/resnet18.a1_in1k",
        )


def _check_words(plan: LaunchPlan) -> None:
    if plan.time is not None and not TIME.fullmatch(plan.time):
        raise UserError(
            f"--time {plan.time}: not a time of Slurm.", "Such as 8:00:00 (hours), 90 (minutes) or 2-12 (days-hours)."
        )
    if plan.memory is not None and not MEMORY.fullmatch(plan.memory):
        raise UserError(f"--memory {plan.memory}: not a size of Slurm.", "Such as 64G.")
    words = [*sbatch_options(plan), *plan.arguments, str(plan.runs or "")]
    if broken := [word for word in words if "\n" in word or "\0" in word]:
        raise UserError(f"{broken[0]!r}: a batch script has no place for a line break in an option.")
    if wrong := [option for option in plan.options if not option.startswith("-")]:
        raise UserError(f"--sbatch {wrong[0]}: not an option of sbatch.", "Such as --sbatch=--exclusive.")


def check_arguments(plan: LaunchPlan) -> None:
    """Let train check its options, for each run of an array, before they wait in a queue. UserError if it refuses."""
    runs = [words_of_run(plan.runs, number + 1) for number in range(len(read_runs(plan.runs)))] if plan.runs else [[]]
    for words in runs:
        command = [sys.executable, "-m", "ddp_ft.train", *plan.arguments, *words, "--print-run-dir"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            text = done.stderr.strip().removeprefix("Error: ")
            raise UserError(*text.split("\n", 1))
