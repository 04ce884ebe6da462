"""A batch job's task on one node: torchrun with as many processes as fit, shielded from the job's signals."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Without GPUs: convolutions scale better over processes than over threads, but each has a model and an optimizer of
# its own (about 1 GB before the first image).
MOST_CPU_PROCESSES = 4


def torchrun_command(nodes: int, rendezvous: str | None, job: str, processes: int, address: str | None) -> list[str]:
    """torchrun up to the arguments of train; `address` is this node's name for the others."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    if nodes == 1:
        command.append("--standalone")
    elif not rendezvous:
        raise UserError(f"{nodes} nodes need --rendezvous HOST:PORT, where they meet.")
    else:
        command += [f"--nnodes={nodes}", "--rdzv_backend=c10d", f"--rdzv_endpoint={rendezvous}", f"--rdzv_id={job}"]
        command += [f"--local_addr={address}"] if address else []
    return [*command, "-m", "ddp_ft.train"]


def choose_processes(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[int, int]:
    """Processes of this node and threads of each: a process a GPU, else up to 4 that share the cores.

    NPROC_PER_NODE and OMP_NUM_THREADS win. The cores are those that affinity leaves, not those of the machine.
    """
    cores = usable_cores()
    gpus = 0 if asks_for_cpu(arguments) else visible_gpus(environ)
    processes = _number(environ, "NPROC_PER_NODE") or gpus or min(cores, MOST_CPU_PROCESSES)
    return processes, _number(environ, "OMP_NUM_THREADS") or max(1, cores // processes)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    given = environ.get(name, "")
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{name}={given!r} in the environment is not a number from 1 on.")
    return int(given)


def asks_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether train is told to use no GPU."""
    text = "\0".join(("", *arguments, ""))
    ways = ("--device=cpu", "--device\0cpu", "--set=compute.device=cpu", "--set\0compute.device=cpu")
    return any(f"\0{way}\0" in text for way in ways)


def visible_gpus(environ: Mapping[str, str]) -> int:
    """The GPUs that CUDA would show: those there are, cut to CUDA_VISIBLE_DEVICES, which ends at an invalid entry."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    existing = sum(line.startswith("GPU ") for line in listed.splitlines())  # indented lines are MIG slices
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return existing
    entries = environ["CUDA_VISIBLE_DEVICES"].split(",")
    shown = next((i for i, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return min(shown, existing)


def run_shielded(command: Sequence[str], environment: Mapping[str, str], stop_file: str | None) -> int:
    """Run the command to its end; a signal to this process becomes a line of the stop file, "step NAME".

    Gives the exit code, which is 0 once a stop was asked for: then summary.json tells how it went, and a node that
    is ready must not look like one that failed, or srun would end the others while they save. A failure is noted
    too, as "crash": what comes after it, srun's TERM to the other nodes, is its consequence.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if stop_file:
            note_event(Path(stop_file), f"step {signal.Signals(number).name}")

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    # A session of its own: what is sent to this process's group is not for torchrun.
    code = subprocess.Popen(command, env=dict(environment), start_new_session=True).wait()
    if stop_file and Path(stop_file).exists():
        return 0
    if stop_file and code:
        note_event(Path(stop_file), "crash")
    return 128 - code if code < 0 else code


def note_event(stop_file: Path, event: str) -> None:
    """Add a line to the stop file, whose existence asks the ranks to stop."""
    stop_file.parent.mkdir(parents=True, exist_ok=True)
    with stop_file.open("a", encoding="utf-8") as stream:
        stream.write(f"{event}\n")
