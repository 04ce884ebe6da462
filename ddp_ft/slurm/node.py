"""A batch job's task on one node: torchrun with as many processes as fit, shielded from the job's signals."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from ddp_ft.distributed.environment import output_of, read_number, usable_cores
from ddp_ft.distributed.stop_request import heeded_signals
from ddp_ft.errors import UserError

# Without GPUs: convolutions scale better over processes than over threads, but each has a model and an optimizer of
# its own (about 1 GB before the first image).
MOST_CPU_PROCESSES = 4


def torchrun_command(nodes: int, rendezvous: str | None, job: str, processes: int, address: str | None) -> list[str]:
    """The words of torchrun up to the arguments of train; `address`: this node's name on the network."""
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
    """The number of processes of this node and of threads of each: a process a GPU, else up to 4 that share the cores.

    NPROC_PER_NODE and OMP_NUM_THREADS take precedence. Only cores that this process may run on count.
    """
    cores = usable_cores()
    gpus = 0 if asks_for_cpu(arguments) else visible_gpus(environ)
    processes = read_number(environ, "NPROC_PER_NODE", least=1) or gpus or min(cores, MOST_CPU_PROCESSES)
    return processes, read_number(environ, "OMP_NUM_THREADS", least=1) or max(1, cores // processes)


def asks_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether the arguments of train ask for the CPU."""
    text = "\0".join(("", *arguments, ""))
    ways = ("--device=cpu", "--device\0cpu", "--set=compute.device=cpu", "--set\0compute.device=cpu")
    return any(f"\0{way}\0" in text for way in ways)


def visible_gpus(environ: Mapping[str, str]) -> int:
    """The number of GPUs that CUDA would see: the node's, up to the first invalid entry of CUDA_VISIBLE_DEVICES."""
    listed = output_of(["nvidia-smi", "-L"], 60, any_code=True) or ""
    existing = sum(line.startswith("GPU ") for line in listed.splitlines())  # indented lines are MIG slices
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return existing
    entries = environ["CUDA_VISIBLE_DEVICES"].split(",")
    visible = next((i for i, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return min(visible, existing)


def run_shielded(command: Sequence[str], environment: Mapping[str, str], stop_file: str | None) -> int:
    """Run the command to its end and return its exit code; a signal to this process becomes a line of the stop file.

    The line is "step NAME". After a request to stop the code is 0: summary.json has the result, and a node that is done
    must not look like one that failed, or srun would end the others while they save. A failure is noted as "crash":
    what follows it, srun's TERM to the other nodes, is its consequence.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if stop_file:
            note_event(Path(stop_file), f"step {signal.Signals(number).name}")

    for number in heeded_signals():  # SIGUSR1 too: it does not get to the ranks, to which NCCL may send it
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
