"""`ddp-ft config`: all configuration keys, one of them, and the recipes; without torch."""

import math
import shlex
import shutil
import textwrap
import typing
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import yaml

from ddp_ft.cli.completion import complete_key, completer
from ddp_ft.cli.output import json_text, print_result
from ddp_ft.config.keys import Key
from ddp_ft.config.loading import AUTO, RECIPE_FOLDER, find_key, nest, read_recipe
from ddp_ft.config.schema import KEYS, RECIPES, REQUIRED, RunConfig
from ddp_ft.errors import UserError, columns, known_names

TYPES = {
    bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path",
    tuple: "list of numbers", dict: "mapping",
}  # fmt: skip
KINDS = """Kinds of keys
  recipe   decides the result; cannot change when a run is resumed
  machine  decides only speed, memory or what is written; may change at any time
  length   how long the run is; grows by --extend
Keys without a flag are set by --set KEY=VALUE or in the file of --config."""
EXAMPLE = """Examples:
  ddp-ft config --list             all keys
  ddp-ft config optim              the keys of one section
  ddp-ft config optim.lr           one key
  ddp-ft config --recipe lp_ft     a recipe, as a file for --config"""
# For keys whose type, range and choices do not lead to a good one.
EXAMPLES = {
    "data.path": "~/pets", "data.group": "patient", "data.weight": "weight", "data.split": "split", "data.fold": "2/5",
    "data.folds": "fold",
    "model.name": "timm/convnext_tiny.in12k_ft_in1k", "model.weights": "none", "model.image_size": "224",
    "head.name": "mlp:256,128", "freeze.parts": "stages:2", "freeze.schedule": "'{0: backbone, 2: stages:2, 4: none}'",
    "freeze.cache_dir": "/scratch/features", "optim.name": "lamb", "optim.lr": "5e-4", "optim.betas": "0.9,0.98",
    "optim.options": "'{eps: 1e-6}'", "optim.overrides": "'{bias$: {lr_scale: 2}}'", "schedule.milestones": "5,8",
    "loss.name": "focal", "loss.class_weights": "balanced", "loss.positive_weights": "balanced",
    "eval.metric": "macro_f1", "eval.extra": "my_metric.py:MyMetric", "log.trackers": "mlflow,wandb",
    "model.drop_path": "0.1", "head.dropout": "0.2", "train.micro_batch": "8", "train.max_steps": "1000",
    "train.max_minutes": "30", "train.clip_agc": "0.01", "optim.l1": "1e-5", "optim.l2_sp": "0.01",
    "augment.color_jitter": "0.4", "augment.erasing": "0.25", "augment.mixup": "0.2", "eval.patience": "3",
    "eval.min_gain": "0.001", "ema.decay": "0.999", "checkpoint.every_steps": "500", "probe.epochs": "20",
    "probe.weight_decay": "0.01", "freeze.views": "4", "optim.layer_decay": "0.75", "data.workers": "4",
    "schedule.final_factor": "0.01", "data.separator": "'|'", "data.range": "0,4095",
    "augment.transform": "my_augment.py:Scratches",
}  # fmt: skip
WIDEST = 100  # characters in a line of --list, on a terminal that has them


@click.command()
@click.argument("key", required=False, shell_complete=complete_key)
@click.option("--explain", metavar="KEY", shell_complete=complete_key, help="The same as KEY alone.")
@click.option("--list", "list_all", is_flag=True, help="All keys, by section.")
@click.option("--recipes", is_flag=True, help="The recipes, one line each.")
@click.option(
    "--recipe",
    metavar="NAME",
    shell_complete=completer(KEYS["recipe"]),
    help="The settings of a recipe, as YAML that --config takes.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines: keys or settings as JSON.")
def config(
    key: str | None, explain: str | None, list_all: bool, recipes: bool, recipe: str | None, as_json: bool
) -> None:
    """Show the configuration keys, or KEY alone (a key such as optim.lr, or a section such as optim)."""
    asked = [key is not None, explain is not None, list_all, recipes, recipe is not None]
    if sum(asked) != 1:
        given = "several of them were" if any(asked) else "nothing was"
        raise UserError(f"Expected one of KEY, --list, --recipes and --recipe; {given} given.", EXAMPLE)
    if recipes:
        lines = recipe_lines()
        content, text = lines, columns(lines)
    else:
        content, text = _contents(key or explain, recipe)
    print_result(json_text(content) if as_json else text)


def _contents(name: str | None, recipe: str | None) -> tuple[Any, str]:
    """What to print, for machines and for people: a recipe, a key, the keys of a section, or all keys."""
    if recipe is not None:
        settings = nest(read_recipe(_known_recipe(recipe)))
        return settings, yaml.safe_dump(settings, sort_keys=False).rstrip()
    inside = [key for path, key in KEYS.items() if name is None or path.startswith(f"{name}.")]
    if not inside:
        key = find_key(name or "")
        return describe(key), details(key)
    return [describe(key) for key in inside], listing(inside) + (f"\n\n{KINDS}" if name is None else "")


def _known_recipe(name: str) -> str:
    if name == AUTO:
        raise UserError("auto is no recipe: it chooses one by the data and the model.", f"Known: {', '.join(RECIPES)}.")
    if name not in RECIPES:
        raise UserError(f"There is no recipe '{name}'.", known_names(name, RECIPES))
    return name


def recipe_lines() -> dict[str, str]:
    """Each recipe with the first line of the comment at the head of its file."""
    texts = {name: (RECIPE_FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in RECIPES}
    return {name: text.partition("\n")[0].lstrip("# ").rstrip() for name, text in texts.items()}


def describe(key: Key) -> dict[str, Any]:
    """All facts about a key, as JSON values; the default null of an `optional` one means auto or none."""
    return {
        "key": key.path,
        "type": key.type.__name__.lower(),
        "optional": key.optional,
        **{name: getattr(key, name) for name in ("default", "choices", "low", "above", "high", "kind", "flag", "help")},
    }


def listing(keys: Iterable[Key]) -> str:
    """The keys by section: a line with name, default, kind and flag; below it the help and the allowed values."""
    sections = groupby(keys, key=lambda key: key.path.rpartition(".")[0])
    return "\n\n".join(_listed_section(section, list(inside)) for section, inside in sections)


def _listed_section(section: str, keys: list[Key]) -> str:
    heading = click.style(section or "(top level)", bold=True)
    if section:
        heading += ": " + (typing.get_type_hints(RunConfig)[section].__doc__ or "").partition("\n")[0]
    lines = [heading]
    name_width = max(len(key.path) for key in keys)
    default_width = max(len(shown_default(key)) for key in keys)
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    wrapper = textwrap.TextWrapper(width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    for key in keys:
        name = click.style(key.path.ljust(name_width), bold=True)
        facts = "  ".join((shown_default(key).ljust(default_width), key.kind.ljust(7), key.flag or ""))
        lines += [f"  {name}  {facts}".rstrip(), wrapper.fill(f"{key.help} [{allowed_values(key)}]")]
    return "\n".join(lines)


def details(key: Key) -> str:
    """One key, with a line for each fact."""
    rows = {
        "default": shown_default(key),
        "values": allowed_values(key),
        "kind": key.kind,
        "flag": key.flag or f"none: --set {key.path}=VALUE",
        "example": f"{key.flag} {shlex.quote(example(key))}" if key.flag else f"--set {key.path}={example(key)}",
    }
    return f"{click.style(key.path, bold=True)}: {key.help}\n{columns(rows)}"


def example(key: Key) -> str:
    """An allowed value: if possible another one than the default."""
    if key.path in EXAMPLES:
        return EXAMPLES[key.path]
    if key.choices:
        return next(choice for choice in (*key.choices[1:], key.choices[0]) if choice != key.default)
    if key.type is bool:
        return str(not key.default).lower()
    if key.type in (int, float):
        limit = key.low if key.low is not None else key.above
        most = math.inf if key.high is None else key.high
        return f"{key.default or min((limit or 0) + 1, most):g}"
    return shown_default(key)


def shown_default(key: Key) -> str:
    """The default as the command line takes it; '(required)' for the keys that every run needs."""
    if key.path in REQUIRED:
        return "(required)"
    if key.default is None:
        return key.null
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


def allowed_values(key: Key) -> str:
    """The allowed values, such as 'one of none, light' or 'number, >=0'."""
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    signs = ((">=", key.low), (">", key.above), ("<=", key.high))
    return ", ".join([TYPES[key.type], *(f"{sign}{limit}" for sign, limit in signs if limit is not None)])
