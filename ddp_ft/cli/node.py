"""`python -m ddp_ft.cli.node`: started once on each node, by a batch job or launch/multi_node.sh; runs its ranks.

In a batch job a signal becomes a line in the job's stop file, which the ranks read: so all nodes save in the same step,
and the batch script knows what came first.
"""

import os
import re
from pathlib import Path

import click

from ddp_ft.cli.options import importing
from ddp_ft.cli.process import run_command
from ddp_ft.cli.ranks import environment_of_ranks, finished
from ddp_ft.distributed.environment import read_number
from ddp_ft.distributed.processes import Meeting, choose_processes, words_ask_for_cpu
from ddp_ft.distributed.stop_request import STOP_FILE_VARIABLE
from ddp_ft.errors import UserError
from ddp_ft.slurm.node import noting, settled


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--nodes", metavar="N", default="1", show_default=True, help="Nodes of the job, or MIN:MAX of them.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where the nodes meet; needed for several.")
@click.option("--job", metavar="NAME", default="ddp_ft", help="The same on all nodes, and of this start alone.")
@click.option("--restarts", type=int, default=0, help="How often the ranks start again after a failure.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def node(nodes: str, rendezvous: str | None, job: str, restarts: int, arguments: tuple[str, ...]) -> int:
    """Run this node's share of a training; ARGUMENTS are those of train.

    NPROC_PER_NODE and OMP_NUM_THREADS in the environment override the number of processes and of their threads.
    """
    least, most = _counts(nodes)
    if most > 1 and not rendezvous:
        raise UserError(f"{nodes} nodes need --rendezvous HOST:PORT, where they meet.")
    wanted = read_number(os.environ, "NPROC_PER_NODE", least=1)
    processes, threads = choose_processes(words_ask_for_cpu(arguments), os.environ, wanted)
    with importing():
        from ddp_ft.distributed.agent import run_ranks

    meeting = Meeting(restarts=restarts)
    if rendezvous:
        meeting = Meeting(least, most, rendezvous, job, os.environ.get("SLURMD_NODENAME"), restarts)
    stop_file = Path(os.environ[STOP_FILE_VARIABLE]) if os.environ.get(STOP_FILE_VARIABLE) else None
    on_signal = noting(stop_file) if stop_file else None
    with environment_of_ranks(threads):
        code = finished(run_ranks("ddp_ft.train", arguments, processes, meeting, on_signal))
    return settled(code, stop_file) if stop_file else code


def _counts(nodes: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})(?::([1-9]\d{0,4}))?", nodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if most < least:
        raise UserError(f"--nodes {nodes} is neither a number of nodes nor MIN:MAX of them.")
    return least, most


if __name__ == "__main__":
    run_command(node)
