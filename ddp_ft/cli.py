"""The `ddp-ft` command: a group whose commands are imported only when they are called."""

import importlib

import click

from ddp_ft import __version__
from ddp_ft.command import run_command

# Name of the command, which is also that of the attribute -> its module, and one line for the list. `models` and
# `config` are names of packages, so these two have modules of other names.
COMMANDS = {
    "train": ("ddp_ft.train", "Fine-tune a model, or go on with an unfinished run."),
    "evaluate": ("ddp_ft.evaluate", "Metrics of a trained model on a data set."),
    "predict": ("ddp_ft.predict", "One row of probabilities for each picture."),
    "doctor": ("ddp_ft.doctor", "Look at the machine, the job and the data before hours are spent."),
    "export": ("ddp_ft.export", "A model as a file for other programs, checked against the original."),
    "fetch": ("ddp_ft.fetch", "Download pretrained weights into the cache."),
    "replay": ("ddp_ft.replay", "Run one step of a run again, and look where it stops being finite."),
    "average": ("ddp_ft.average", "Average the weights of several checkpoints of a run."),
    "submit": ("ddp_ft.submit", "Write a batch script for Slurm, and submit it."),
    "models": ("ddp_ft.show_models", "List the models there are, or describe one."),
    "config": ("ddp_ft.show_config", "Show all configuration keys, one of them, or a recipe."),
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
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, from the table and not from the modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="ddp-ft")
def ddp_ft() -> None:
    """Fine-tune vision models on one CPU, one GPU or many nodes, with the same result."""


def main() -> None:
    """The console script."""
    run_command(ddp_ft)
