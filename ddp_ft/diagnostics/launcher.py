"""What torchrun and Slurm put into the environment, and whether it agrees. Free of torch."""

import socket
from collections.abc import Iterator, Mapping

from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from ddp_ft.distributed.environment import Launch, number_or, processes_started
from ddp_ft.texts import plural

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
    """What started this process, and how many times."""
    starter, tasks, _ = processes_started(environ)
    if not launch.distributed and starter:
        text = f"{starter} started {tasks} processes without torchrun: each would be a run of its own"
        remedy = "Start one task a node with torchrun in it, or use slurm/*.sbatch (docs/slurm.md)."
        return Finding("start", PROBLEM, text, remedy, float(tasks), "processes")
    ranks = plural(launch.world_size, "process", "processes")
    text = f"torchrun, {ranks}, {launch.local_world_size} of them on this node"
    if not launch.distributed:
        text = "one process, without torchrun"
    return Finding("start", OK, text, value=float(launch.world_size), unit="processes")


def cores_of_task(environ: Mapping[str, str], cores: int) -> Finding:
    """Whether the process may use the cores that Slurm reserved for its task.

    srun does not inherit --cpus-per-task (since Slurm 22.05): a task without it gets one core.
    """
    here = number_or(0, environ, "SLURM_CPUS_ON_NODE")
    tasks = number_or(0, environ, "SLURM_NTASKS_PER_NODE") or 1
    asked = number_or(0, environ, "SLURM_CPUS_PER_TASK") or here // tasks
    text = f"{cores} for this process, of {asked} that the task should have"
    remedy = f"srun --cpus-per-task={asked} ..., or export SRUN_CPUS_PER_TASK={asked}: srun does not inherit it."
    return Finding("cores of task", WARNING, text, remedy, float(cores), "cores").unless(cores >= asked)


def nodes(environ: Mapping[str, str], launch: Launch) -> Iterator[Finding]:
    """Whether torchrun uses all nodes of the job."""
    count = number_or(0, environ, "SLURM_JOB_NUM_NODES") or number_or(0, environ, "SLURM_NNODES")
    used = -(-launch.world_size // launch.local_world_size)
    if not count:
        return
    remedy = "Start torchrun on each (srun, --nnodes), or use slurm/multi_node.sbatch; or ask for fewer."
    if used > count:
        remedy = "WORLD_SIZE is left from another job: unset the variables of torchrun."
    text = f"{used} of the job's {plural(count, 'node')} used"
    yield Finding("nodes", WARNING, text, remedy, float(used), "nodes").unless(used == count)


def gpus_of_node(launch: Launch, gpus: int) -> Finding:
    """Whether the node has one process for each GPU."""
    processes = launch.local_world_size
    text = f"{plural(processes, 'process', 'processes')} for {plural(gpus, 'GPU')}"
    verdict, remedy = PROBLEM if processes > gpus else WARNING, f"torchrun --nproc_per_node={gpus}"
    return Finding("gpus of node", verdict, text, remedy, float(gpus), "GPUs").unless(processes == gpus)


def interfaces(environ: Mapping[str, str], there: list[str]) -> Iterator[Finding]:
    """Whether the network interfaces that variables name are `there`."""
    for variable in INTERFACES:
        given = environ.get(variable, "")
        # NCCL: ^ excludes, = is exact; else it is a prefix.
        if not given or given.startswith("^"):
            continue
        if any(name.startswith(prefix) for prefix in given.lstrip("=").split(",") for name in there):
            yield Finding(variable, OK, given)
        else:
            text = f"{given}: there is no such interface, only {', '.join(there)}"
            yield Finding(variable, PROBLEM, text, f"unset {variable}, or name one of these.")
