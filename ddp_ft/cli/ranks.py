"""`--processes`: a command that starts its ranks itself, as torchrun would."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ddp_ft.cli.help import GroupedCommand
from ddp_ft.cli.options import importing
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.processes import Meeting, Outcome, choose_processes
from ddp_ft.errors import EXIT_DONE, EXIT_STOPPED, UserError
from ddp_ft.run_folder.contents import read_summary

_WORDS, _WANTED = "ddp_ft.words", "ddp_ft.processes"  # in a context's meta
# In the environment of ranks: the process that has started them, to which --processes was addressed.
_STARTED_BY = "DDP_FT_STARTED_BY"
AUTO = "auto"


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A number of processes, or `auto`, which is None."""

    name = "processes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number. BadParameter for other text."""
        if value == AUTO or (str(value).isdecimal() and int(value) > 0):
            return None if value == AUTO else int(value)
        return self.fail(f"{value!r} is neither a number from 1 on nor {AUTO}.", param, ctx)


class CommandOfRanks(click.Command):
    """A command with --processes, whose function calls `run_in_ranks` once it has checked its options."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params.append(
            click.Option(
                ["--processes", "--devices"],
                metavar=f"N|{AUTO}",
                type=Number(),
                expose_value=False,
                callback=_keep,
                help=f"Processes to start, one a GPU; {AUTO}: all GPUs, or up to 4 on a CPU.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; the words are for the ranks."""
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)


class GroupedCommandOfRanks(GroupedCommand, CommandOfRanks):
    """The same, with its help in groups."""


def _keep(context: click.Context, option: click.Parameter, number: int | None) -> None:
    assert option.name is not None
    if context.get_parameter_source(option.name) == click.core.ParameterSource.COMMANDLINE:
        context.meta[_WANTED] = number


def run_in_ranks(module: str, on_cpu: bool, run_dir: Path | None = None) -> int | None:
    """Run this command in as many processes as --processes asks for, and return the exit code.

    None where this process does the work: in a rank, or because nobody asked for several. `on_cpu`: GPUs do not count.
    Ranks that stop on request end in order; that they stopped is in the summary.json of `run_dir`.
    """
    meta = click.get_current_context().meta
    if _WANTED not in meta or os.environ.get(_STARTED_BY) == str(os.getppid()):
        return None
    launch = read_launch()
    if launch.distributed:
        message = f"--processes is for a start without torchrun, which has started {launch.world_size} process(es)."
        raise UserError(message, "Leave --processes out.")
    processes, threads = choose_processes(on_cpu, os.environ, meta[_WANTED])
    if processes == 1:
        return None
    code = _run(module, meta[_WORDS], processes, threads)
    has_stopped = code == EXIT_DONE and run_dir is not None and read_summary(run_dir).get("status") == "stopped"
    return EXIT_STOPPED if has_stopped else code


def _run(module: str, words: Sequence[str], processes: int, threads: int) -> int:
    with importing():
        from ddp_ft.distributed.agent import run_ranks

    with environment_of_ranks(threads):
        return finished(run_ranks(module, words, processes, Meeting()))


@contextmanager
def environment_of_ranks(threads: int) -> Iterator[None]:
    """What ranks that are started in the block find in their environment."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": str(threads), _STARTED_BY: str(os.getpid())})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def finished(outcome: Outcome) -> int:
    """Print why a rank has ended that could not print it, and return the exit code."""
    if outcome.message:
        click.echo(f"Error: {outcome.message}\n{outcome.hint}", err=True)
    return outcome.code
