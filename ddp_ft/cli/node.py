"""`python -m ddp_ft.cli.node`: started once on each node by a batch job; runs torchrun and shields it from signals.

torchrun ends its workers when it gets a signal, fails even if they saved and exited in order, and leaves orphans
if several signals come at once, as at the end of Slurm's grace time. So it gets none: a signal becomes a
line in the job's stop file, which the ranks read.
"""

import os

import click

from ddp_ft.cli.process import run_command
from ddp_ft.slurm.node import choose_processes, run_shielded, torchrun_command


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--nodes", type=int, default=1, show_default=True, help="Nodes of the job.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where the nodes meet; needed for several.")
@click.option("--job", metavar="NAME", default="ddp_ft", help="The same on all nodes, and of this start alone.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def node(nodes: int, rendezvous: str | None, job: str, arguments: tuple[str, ...]) -> int:
    """Run this node's share of a training; ARGUMENTS are those of train."""
    processes, threads = choose_processes(arguments, os.environ)
    command = torchrun_command(nodes, rendezvous, job, processes, os.environ.get("SLURMD_NODENAME"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # How long torchrun lets its workers save, should a signal reach it; older ones do not know this and have 30 s.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    return run_shielded([*command, *arguments], environment, os.environ.get("DDP_FT_STOP_FILE"))


if __name__ == "__main__":
    run_command(node)
