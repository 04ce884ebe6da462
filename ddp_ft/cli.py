"""The `ddp-ft` command: a group whose commands are imported only when they are called."""

import importlib

import click

from ddp_ft import __version__
from ddp_ft.command import run_command

# Name of the command, which is also that of its module -> one line for the list.
COMMANDS = {
    "train": "Fine-tune a model, or go on with an unfinished run.",
    "evaluate": "Metrics of a trained model on a data set.",
    "predict": "One row of probabilities for each picture.",
    "fetch": "Download pretrained weights into the cache.",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for: --help need not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"ddp_ft.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, from the table and not from the modules."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="ddp-ft")
def ddp_ft() -> None:
    """Fine-tune vision models on one CPU, one GPU or many nodes, with the same result."""


def main() -> None:
    """The console script."""
    run_command(ddp_ft)
