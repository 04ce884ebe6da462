"""What torchrun and Slurm say in the environment, and where they contradict each other. Free of torch."""

import socket
from collections.abc import Iterator, Mapping

from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from ddp_ft.distributed.environment import Launch, number_or

INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def all_of(environ: Mapping[str, str], launch: Launch, cores: int, gpus: int) -> Iterator[Finding]:
    """Findings for this process; `cores` are those it may use, `gpus` those it sees."""
    yield started(environ, launch)
    if "SLURM_JOB_ID" in environ:
        yield cores_of_task(environ, cores)
        yield from nodes(environ, launch)
    if launch.distributed and gpus:
        yield gpus_of_node(launch, gpus)
    yield from interfaces(environ, [name for _, name in socket.if_nameindex()])


def started(environ: Mapping[str, str], launch: Launch) -> Finding:
    """By whom this process was started, and how often."""
    tasks = number_or(0, environ, "SLURM_STEP_NUM_TASKS")
    if not launch.distributed and tasks > 1:
        text = f"srun started {tasks} processes without torchrun: each would be a run of its own"
        remedy = "Start one task a node with torchrun in it, or use slurm/*.sbatch (docs/slurm.md)."
        return Finding("start", PROBLEM, text, remedy, float(tasks), "processes")
    if not launch.distributed:
        return Finding("start", OK, "one process, without torchrun", value=1.0, unit="processes")
    text = f"torchrun, {launch.world_size} processes, {launch.local_world_size} of them on this node"
    return Finding("start", OK, text, value=float(launch.world_size), unit="processes")


def cores_of_task(environ: Mapping[str, str], cores: int) -> Finding:
    """Cores that Slurm gave the job here, against those that the process may use.

    srun does not inherit --cpus-per-task (since Slurm 22.05): a task without it gets one core.
    """
    here = number_or(0, environ, "SLURM_CPUS_ON_NODE")
    tasks = number_or(0, environ, "SLURM_NTASKS_PER_NODE") or 1
    asked = number_or(0, environ, "SLURM_CPUS_PER_TASK") or here // tasks
    text = f"{cores} for this process, of {asked} that the task should have"
    if cores >= asked:
        return Finding("cores of task", OK, text, value=float(cores), unit="cores")
    remedy = f"srun --cpus-per-task={asked} ..., or export SRUN_CPUS_PER_TASK={asked}: srun does not inherit it."
    return Finding("cores of task", WARNING, text, remedy, float(cores), "cores")


def nodes(environ: Mapping[str, str], launch: Launch) -> Iterator[Finding]:
    """Nodes of the job that torchrun does not use."""
    count = number_or(0, environ, "SLURM_JOB_NUM_NODES") or number_or(0, environ, "SLURM_NNODES")
    used = -(-launch.world_size // launch.local_world_size)
    if not count:
        return
    text = f"{used} of the job's {count} nodes are used"
    if used == count:
        yield Finding("nodes", OK, text, value=float(used), unit="nodes")
    elif used < count:
        remedy = "Start torchrun on each (srun, --nnodes), or use slurm/multi_node.sbatch; or ask for fewer."
        yield Finding("nodes", WARNING, text, remedy, float(used), "nodes")
    else:
        remedy = "WORLD_SIZE is left from another job: unset the variables of torchrun."
        yield Finding("nodes", WARNING, text, remedy, float(used), "nodes")


def gpus_of_node(launch: Launch, gpus: int) -> Finding:
    """Processes of the node against its GPUs."""
    text = f"{launch.local_world_size} processes for {gpus} GPUs"
    if launch.local_world_size == gpus:
        return Finding("gpus of node", OK, text, value=float(gpus), unit="GPUs")
    verdict = PROBLEM if launch.local_world_size > gpus else WARNING
    return Finding("gpus of node", verdict, text, f"torchrun --nproc_per_node={gpus}", float(gpus), "GPUs")


def interfaces(environ: Mapping[str, str], there: list[str]) -> Iterator[Finding]:
    """Network interfaces that variables name."""
    for variable in INTERFACES:
        given = environ.get(variable, "")
        # NCCL: ^ excludes, = is exact; else names begin so.
        if not given or given.startswith("^"):
            continue
        wanted = given.lstrip("=").split(",")
        if any(name.startswith(prefix) for prefix in wanted for name in there):
            yield Finding(variable, OK, given)
        else:
            text = f"{given}: there is no such interface, only {', '.join(there)}"
            yield Finding(variable, PROBLEM, text, f"unset {variable}, or name one of these.")
