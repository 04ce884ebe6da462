"""What the launcher says in environment variables; the only reader of them, and free of torch.

torchrun outranks Slurm: a job step that runs torchrun sees both, and SLURM_PROCID then counts launchers and not
ranks. So the Slurm variables are not read for ranks at all.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.errors import UserError

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Place of this process in its job. `distributed` is false for a plain `python -m`."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    distributed: bool = False


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """The place that torchrun gave this process; a lone process if it gave none.

    Raises UserError if only some of the variables are set, or one that should be a number is not.
    """
    env = os.environ if environ is None else environ
    present = [name for name in TORCHRUN_VARIABLES if env.get(name)]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(present):
        return Launch()  # MASTER_ADDR alone is common in container images and means nothing
    missing = [name for name in TORCHRUN_VARIABLES if name not in present]
    if missing:
        raise UserError(
            f"The launcher's variables are half set: {', '.join(present)} without {', '.join(missing)}.",
            "Start with torchrun, which sets them all, or unset them to run in one process.",
        )
    numbers = [_number(env, name) for name in TORCHRUN_VARIABLES[:4]]
    rank, world_size, local_rank, local_world_size = numbers
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
        raise UserError(
            f"The launcher's variables contradict each other: {dict(zip(TORCHRUN_VARIABLES, numbers, strict=False))}"
        )
    return Launch(rank, world_size, local_rank, local_world_size, distributed=True)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise UserError(f"{name}={env[name]!r} in the environment is not a whole number.") from None


def usable_cores() -> int:
    """Cores that this process may run on: affinity and cgroups count, what the machine has does not."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch_started(launch: Launch) -> float:
    """When torchrun's agent on this node was started, or this process where there is none: seconds since 1970.

    Workers that an agent starts anew belong to the same launch. Where there is no /proc it is now.
    """
    pid = os.getppid() if launch.distributed else os.getpid()
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        facts = Path("/proc/stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in facts if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return time.time()
    return boot + ticks / os.sysconf("SC_CLK_TCK")
