"""What surrounds this process: the launcher's environment variables, which only this module reads; cores; commands.

torchrun takes precedence over Slurm: a job step that runs torchrun sees both, and SLURM_PROCID then counts launchers
and not ranks. So ranks are never read from Slurm's variables. Free of torch.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_ft.errors import UserError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# What starts several processes that do not know each other: the variables with their number, and this one's place.
_STARTERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
    "mpirun_rsh": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "jsrun": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    "flux run": ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
}


class ReportedByAnother(UserError):
    """A mistake that another process of the job prints."""


@dataclass(frozen=True)
class Launch:
    """The place of this process in its job. `distributed` is false for a plain `python -m`; `has_agent`: its parent is
    torchrun's agent."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    distributed: bool = False
    has_agent: bool = False

    @property
    def started(self) -> float:
        """When torchrun's agent on this node was started, or this process if there is none: seconds since 1970.

        Workers that an agent starts anew belong to the same launch. Without /proc it is now.
        """
        pid = os.getppid() if self.distributed else os.getpid()
        try:
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
            facts = Path("/proc/stat").read_text().splitlines()
            boot = next(int(line.split()[1]) for line in facts if line.startswith("btime "))
        except (OSError, ValueError, IndexError, StopIteration):
            return time.time()
        return boot + ticks / os.sysconf("SC_CLK_TCK")


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """The place of this process from torchrun's variables; that of a lone process if none are set.

    Raises UserError if only some of them are set, or one that should be a number is not; and if this lone process is
    one of several that were started without torchrun, `ReportedByAnother` in all of those but the first.
    """
    present = [name for name in TORCHRUN_VARIABLES if environ.get(name)]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(present):
        _check_alone(environ)
        return Launch()  # MASTER_ADDR alone is common in container images and means nothing
    missing = [name for name in TORCHRUN_VARIABLES if name not in present]
    if missing:
        raise UserError(
            f"The launcher's variables are half set: {', '.join(present)} without {', '.join(missing)}.",
            "Start with torchrun, which sets them all, or unset them to run in one process.",
        )
    numbers = [read_number(environ, name) or 0 for name in TORCHRUN_VARIABLES[:4]]
    rank, world_size, local_rank, local_world_size = numbers
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        raise UserError(
            f"The launcher's variables contradict each other: {dict(zip(TORCHRUN_VARIABLES, numbers, strict=False))}"
        )
    if (read_number(environ, "MASTER_PORT", least=1) or 1) > 65535:
        raise UserError(f"MASTER_PORT={environ['MASTER_PORT']} in the environment is no port: they end at 65535.")
    has_agent = "TORCHELASTIC_RUN_ID" in environ
    return Launch(rank, world_size, local_rank, local_world_size, distributed=True, has_agent=has_agent)


def processes_started(environ: Mapping[str, str]) -> tuple[str, int, int]:
    """What started this process without torchrun, how many it started, and which of them this is; "", 1, 0 if nothing
    did. Not of the shells of an interactive step, of which one alone has the terminal."""
    for starter, (size, place) in _STARTERS.items():
        if (count := number_or(1, environ, size)) > 1 and "SLURM_PTY_PORT" not in environ:
            return starter, count, number_or(0, environ, place)
    return "", 1, 0


def _check_alone(environ: Mapping[str, str]) -> None:
    starter, count, place = processes_started(environ)
    if not starter:
        return
    message = f"{starter} started {count} processes without torchrun: each would be a run of its own, in one folder."
    hint = "Start one task a node with torchrun in it, or use slurm/*.sbatch (docs/slurm.md)."
    if starter != "srun":
        hint = "Start torchrun --nproc_per_node=N on each node instead."
    raise (ReportedByAnother if place else UserError)(message, f"{hint} For a single process start one task alone.")


def read_number(environ: Mapping[str, str], name: str, least: int = 0) -> int | None:
    """A whole number in the environment; None if it is not set or empty. UserError for other text, or below `least`."""
    given = environ.get(name, "")
    if not given:
        return None
    if not given.isdecimal() or int(given) < least:
        raise UserError(f"{name}={given!r} in the environment is not a whole number from {least} on.")
    return int(given)


def number_or(default: int, environ: Mapping[str, str], name: str) -> int:
    """As `read_number`, or the default if the variable holds none."""
    given = environ.get(name, "")
    return int(given) if given.isdecimal() else default


def output_of(command: Sequence[str], seconds: float, any_code: bool = False, **more: Any) -> str | None:
    """The standard output of a command, stripped; None if it is missing or takes longer than so many seconds.

    None too if it fails, unless `any_code`. `more` is for subprocess.run.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **more)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if any_code or done.returncode == 0 else None


def usable_cores() -> int:
    """The number of cores that affinity and cgroups leave to this process; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
