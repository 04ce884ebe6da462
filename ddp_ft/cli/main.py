"""The `ddp-ft` command: a group whose commands are imported only when they are called."""

import importlib
import os

import click
from click.shell_completion import CompletionItem

from ddp_ft.cli.output import print_result
from ddp_ft.cli.process import run_command
from ddp_ft.config.synonyms import command_answer
from ddp_ft.errors import nearest
from ddp_ft.version import __version__

# Name of the command and of its function -> module, and a line for the list.
COMMANDS = {
    "train": ("ddp_ft.train", "Fine-tune a model, or resume an unfinished run."),
    "kfold": ("ddp_ft.cli.kfold", "Train a model for each fold of a cross-validation."),
    "evaluate": ("ddp_ft.evaluate", "Metrics of a trained model on a data set."),
    "predict": ("ddp_ft.predict", "One row of probabilities for each image."),
    "doctor": ("ddp_ft.doctor", "Check the machine, the job and the data before hours are spent."),
    "export": ("ddp_ft.export", "A model as a file for other programs, checked against the original."),
    "fetch": ("ddp_ft.cli.fetch", "Download pretrained weights into the cache."),
    "replay": ("ddp_ft.cli.replay", "Run one step of a run again, and report what is not finite."),
    "average": ("ddp_ft.cli.average", "Average the weights of several checkpoints of a run."),
    "submit": ("ddp_ft.cli.submit", "Write a batch script for Slurm, and submit it."),
    "runs": ("ddp_ft.cli.runs", "List the runs in a folder, with their progress and results."),
    "report": ("ddp_ft.cli.report", "Write a page about a run, or one that compares several."),
    "models": ("ddp_ft.cli.models", "List the models there are, or describe one."),
    "config": ("ddp_ft.cli.config", "Show all configuration keys, one of them, or a recipe."),
    "completion": ("ddp_ft.cli.completion", "Make your shell complete commands, options and values."),
}

# The environment variable by which a shell asks click for completions.
VARIABLE = "_DDP_FT_COMPLETE"


class LazyGroup(click.Group):
    """Imports a command's module only when it is called: --help need not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest commands in the message for an unknown one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{name}'. {command_answer(name) or nearest(name, list(COMMANDS))}".rstrip())
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options, without importing what the commands need."""
        commands = [CompletionItem(n, help=line) for n, (_, line) in COMMANDS.items() if n.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, from the table and not from the modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(__version__, prog_name="ddp-ft")
@click.pass_context
def ddp_ft(context: click.Context) -> None:
    """Fine-tune vision models on one CPU, one GPU or many nodes, with the same result."""
    if context.invoked_subcommand is None:
        print_result(context.get_help())


def main() -> None:
    """The console script."""
    if VARIABLE in os.environ:
        importlib.import_module("ddp_ft.cli.completion")  # for its class for bash
    run_command(ddp_ft)


if __name__ == "__main__":
    main()
