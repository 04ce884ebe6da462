"""The processes of this machine: how many, with how many threads, and how they ended. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddp_ft.distributed.environment import output_of, read_number, usable_cores

# Without GPUs: convolutions scale better over processes than over threads, but each has a model and an optimizer of
# its own (about 1 GB before the first image).
MOST_CPU_PROCESSES = 4


@dataclass(frozen=True)
class Meeting:
    """Where the agents of a job's nodes meet; a single node meets nobody."""

    least_nodes: int = 1
    most_nodes: int = 1
    endpoint: str = "localhost:0"  # any free port
    job: str = ""  # the same on all nodes, and of this start alone
    # This node's name on the network; None: the one that name servers have, which a machine alone need not have.
    address: str | None = "localhost"
    restarts: int = 0


@dataclass(frozen=True)
class Outcome:
    """How the ranks of this machine ended. `message` is for a rank that something has ended before it could print."""

    code: int
    message: str = ""
    hint: str = ""


def choose_processes(asks_for_cpu: bool, environ: Mapping[str, str], wanted: int | None = None) -> tuple[int, int]:
    """The number of processes of this machine and of threads of each.

    As many processes as are wanted, else a process a GPU, else up to 4 that share the cores; OMP_NUM_THREADS threads if
    that is set. Only GPUs that CUDA would see and cores that this process may run on count.
    """
    cores = usable_cores()
    gpus = 0 if asks_for_cpu or wanted else visible_gpus(environ)
    processes = wanted or gpus or min(cores, MOST_CPU_PROCESSES)
    return processes, read_number(environ, "OMP_NUM_THREADS", least=1) or max(1, cores // processes)


def words_ask_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether the arguments of train ask for the CPU."""
    text = "\0".join(("", *arguments, ""))
    ways = ("--device=cpu", "--device\0cpu", "--set=compute.device=cpu", "--set\0compute.device=cpu")
    return any(f"\0{way}\0" in text for way in ways)


def visible_gpus(environ: Mapping[str, str]) -> int:
    """The number of GPUs that CUDA would see: the machine's, up to the first invalid entry of CUDA_VISIBLE_DEVICES."""
    listed = output_of(["nvidia-smi", "-L"], 60, any_code=True) or ""
    existing = sum(line.startswith("GPU ") for line in listed.splitlines())  # indented lines are MIG slices
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return existing
    entries = environ["CUDA_VISIBLE_DEVICES"].split(",")
    visible = next((i for i, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return min(visible, existing)
