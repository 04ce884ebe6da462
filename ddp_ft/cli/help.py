"""The help of commands with many options, in groups, the usual ones first."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from ddp_ft.config.synonyms import flag_answer

GROUPS = {
    "Usual": ("data", "model", "weights", "epochs", "batch-size", "lr", "recipe", "run-dir", "processes"),
    "Data and task": ("task", "val-split", "sampling", "class-weights", "image-size"),
    "Training and evaluation": (
        "optimizer", "weight-decay", "schedule", "warmup", "loss", "clip-norm", "ema", "metric", "patience", "seed",
        "max-steps", "max-minutes", "extend",
    ),
    "Head and frozen parts": ("head", "freeze", "adapter", "layer-decay"),
    "Augmentation": ("augment", "mixup", "cutmix"),
    "Machine": ("device", "precision", "workers", "micro-batch", "tune"),
    "Output": ("track", "quiet", "log-level", "profile", "dry-run", "print-run-dir"),
}  # fmt: skip
_REST = "Other"
# Characters of a placeholder that leave room for the text beside it; longer lists of choices stand in the text.
_MOST = 12
# The width of the column with the options.
_COLUMN = 28


class GroupedCommand(click.Command):
    """A command whose help is in groups; the default of an option is in brackets."""

    groups: Mapping[str, tuple[str, ...]] = GROUPS
    # What is said in place of the options that are in no group; empty: they are listed.
    elsewhere = ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; words that belong to no option are an error that says how they are given."""
        words, ctx.allow_extra_args = tuple(args), True  # click empties the list
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            ctx.fail(f"{shlex.join(ctx.args)} belongs to no option. {_as_option(ctx.args[0], words)}".rstrip())
        return ctx.args

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, and then whatever is in none."""
        options = {each.opts[0].lstrip("-"): each for each in self.get_params(ctx) if isinstance(each, click.Option)}
        grouped = [name for names in self.groups.values() for name in names]
        rest = tuple(name for name in options if name not in grouped)
        groups = {**self.groups} if self.elsewhere else {**self.groups, _REST: rest}
        for title, names in groups.items():
            with formatter.section(title):
                formatter.write_dl([_row(options[name]) for name in names if name in options], col_max=_COLUMN)
        if self.elsewhere:
            formatter.write_paragraph()
            formatter.write_text(self.elsewhere)


def _as_option(word: str, words: Sequence[str]) -> str:
    """How the first word that belongs to no option may be meant."""
    key, equals, value = word.partition("=")
    before = words[max(0, words.index(word) - 2) : words.index(word)]
    if before and before[0] == "--set" and "=" not in before[-1]:
        return f"Did you mean --set {before[-1]}={word}?"
    if equals and (answer := flag_answer(key)):
        return answer
    if equals:
        return f"Did you mean --set {word}?" if "." in key else f"Did you mean --{key} {value}?"
    return f"Did you mean --data {word}?" if Path(word).exists() and "--data" not in words else ""


def _row(option: click.Option) -> tuple[str, str]:
    name, text = option.opts[0], option.help or ""
    if option.is_flag or not option.metavar:
        return name, text
    if len(option.metavar) <= _MOST:
        return f"{name} {option.metavar}", text
    choices = option.metavar.split("|")
    listed = "" if all(each in text for each in choices) else f"{', '.join(choices)}. "
    return f"{name} NAME", f"{listed}{text}"
