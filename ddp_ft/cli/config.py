"""`ddp-ft config`: all configuration keys, one of them, and the recipes; from the schema alone, without torch."""

import json
import math
import shlex
import shutil
import textwrap
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import yaml

from ddp_ft.cli.completion import complete_key, completer
from ddp_ft.config.keys import Key
from ddp_ft.config.loading import RECIPE_FOLDER, find_key, read_recipe
from ddp_ft.config.schema import KEYS, RunConfig
from ddp_ft.errors import UserError, nearest

AUTO = "auto"
TYPES = {
    bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path",
    tuple: "list of numbers", dict: "mapping",
}  # fmt: skip
KINDS = """Kinds of keys
  recipe   decides the result; stays as it is when a run goes on
  machine  decides only speed, memory or what is written; may change at any time
  length   how long the run is; grows by --extend
Keys without a flag are set by --set KEY=VALUE or in the file of --config."""
EXAMPLE = """Examples:
  ddp-ft config --list             all keys
  ddp-ft config optim              the keys of one section
  ddp-ft config optim.lr           one key
  ddp-ft config --recipe lp_ft     a recipe, as a file for --config"""
# Of keys whose type alone does not make one.
EXAMPLES = {
    "data.path": "~/pets",
    "data.group": "patient",
    "data.weight": "weight",
    "data.split": "split",
    "data.fold": "2/5",
    "model.name": "timm/convnext_tiny.in12k_ft_in1k",
    "model.weights": "none",
    "model.image_size": "224",
    "head.name": "mlp:256,128",
    "freeze.parts": "stages:2",
    "freeze.schedule": "'{0: backbone, 2: stages:2, 4: none}'",
    "freeze.cache_dir": "/scratch/features",
    "optim.name": "lamb",
    "optim.lr": "5e-4",
    "optim.betas": "0.9,0.98",
    "optim.options": "'{eps: 1e-6}'",
    "optim.overrides": "'{bias$: {lr_scale: 2}}'",
    "schedule.milestones": "5,8",
    "loss.name": "focal",
    "loss.class_weights": "balanced",
    "loss.positive_weights": "balanced",
    "eval.metric": "macro_f1",
    "eval.extra": "my_metric.py:MyMetric",
    "log.trackers": "mlflow,wandb",
    # Of these, one that somebody may want.
    "model.drop_path": "0.1",
    "head.dropout": "0.2",
    "train.micro_batch": "8",
    "train.max_steps": "1000",
    "train.max_minutes": "30",
    "train.clip_agc": "0.01",
    "optim.l1": "1e-5",
    "optim.l2_sp": "0.01",
    "augment.color_jitter": "0.4",
    "augment.erasing": "0.25",
    "augment.mixup": "0.2",
    "eval.patience": "3",
    "eval.min_gain": "0.001",
    "ema.decay": "0.999",
    "checkpoint.every_steps": "500",
    "probe.epochs": "20",
    "probe.weight_decay": "0.01",
    "freeze.views": "4",
    "optim.layer_decay": "0.75",
    "data.workers": "4",
    "schedule.final_factor": "0.01",
    "data.separator": "'|'",
}
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
    key = key or explain
    if sum(asked) != 1:
        given = "nothing" if not any(asked) else "several of them"
        raise UserError(f"One of KEY, --list, --recipes and --recipe is wanted; {given} was given.", EXAMPLE)
    if recipes:
        click.echo(_as_json(recipe_lines()) if as_json else _columns(recipe_lines().items()))
    elif recipe is not None:
        settings = nest(read_recipe(_known_recipe(recipe)))
        click.echo(_as_json(settings) if as_json else yaml.safe_dump(settings, sort_keys=False).rstrip())
    else:
        _show_keys(key, as_json)


def _show_keys(name: str | None, as_json: bool) -> None:
    inside = [key for path, key in KEYS.items() if name is None or path.startswith(f"{name}.")]
    if not inside:
        key = find_key(name or "")
        click.echo(_as_json(describe(key)) if as_json else details(key))
    elif as_json:
        click.echo(_as_json([describe(key) for key in inside]))
    else:
        click.echo(listing(inside) + (f"\n\n{KINDS}" if name is None else ""))


def _known_recipe(name: str) -> str:
    known = list(recipe_lines())
    if name == AUTO:
        raise UserError("auto is no recipe: it chooses one by the data and the model.", f"Recipes: {', '.join(known)}.")
    if name not in known:
        raise UserError(f"There is no recipe '{name}'.", nearest(name, known) or f"Recipes: {', '.join(known)}.")
    return name


def recipe_lines() -> dict[str, str]:
    """Each recipe with the first line of the comment that heads its file."""
    found = {}
    for name in KEYS["recipe"].choices or ():
        if name != AUTO:
            with (RECIPE_FOLDER / f"{name}.yaml").open(encoding="utf-8") as lines:
                found[name] = next(lines).lstrip("# ").rstrip()
    return found


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a YAML file."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = _plain(value)
    return nested


def describe(key: Key) -> dict[str, Any]:
    """All that is known of a key, as JSON values; where `optional`, the default null stands for auto or none."""
    return {
        "key": key.path,
        "type": key.type.__name__.lower(),
        "optional": key.optional,
        "default": _plain(key.default),
        "choices": _plain(key.choices),
        "low": key.low,
        "above": key.above,
        "high": key.high,
        "kind": key.kind,
        "flag": key.flag,
        "help": key.help,
    }


def listing(keys: Iterable[Key]) -> str:
    """The keys by section: a line with name, default, kind and flag; below it the help and the allowed values."""
    sections: dict[str, list[Key]] = {}
    for key in keys:
        sections.setdefault(key.path.rpartition(".")[0], []).append(key)
    return "\n\n".join(_listed_section(section, inside) for section, inside in sections.items())


def _listed_section(section: str, keys: list[Key]) -> str:
    lines = [_heading(section)]
    name_width = max(len(key.path) for key in keys)
    default_width = max(len(shown_default(key)) for key in keys)
    for key in keys:
        name = click.style(key.path.ljust(name_width), bold=True)
        facts = "  ".join((shown_default(key).ljust(default_width), key.kind.ljust(7), key.flag or ""))
        says = f"{key.help} [{allowed_values(key)}]"
        lines += [f"  {name}  {facts}".rstrip(), _wrap(says)]
    return "\n".join(lines)


def _wrap(text: str) -> str:
    columns = shutil.get_terminal_size((WIDEST, 24)).columns
    indent = " " * 6
    return textwrap.fill(
        text, min(WIDEST, columns), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _heading(section: str) -> str:
    if not section:
        return click.style("(top level)", bold=True)
    says = (typing.get_type_hints(RunConfig)[section].__doc__ or "").splitlines()[0]
    return f"{click.style(section, bold=True)}: {says}"


def details(key: Key) -> str:
    """One key, a line for each thing that is known of it."""
    rows = {
        "default": shown_default(key),
        "values": allowed_values(key),
        "kind": key.kind,
        "flag": key.flag or f"none: --set {key.path}=VALUE",
        "example": f"{key.flag} {shlex.quote(example(key))}" if key.flag else f"--set {key.path}={example(key)}",
    }
    return f"{click.style(key.path, bold=True)}: {key.help}\n{_columns(rows.items())}"


def example(key: Key) -> str:
    """A value that the key takes: another one than the default where there is a choice."""
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
    """The default as the command line takes it; '(required)' for what a run cannot do without."""
    if key.path in ("data.path", "model.name"):
        return "(required)"
    if key.default is None:
        return key.null
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


def allowed_values(key: Key) -> str:
    """What the key takes, such as 'one of none, light' or 'number, >=0'."""
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    signs = ((">=", key.low), (">", key.above), ("<=", key.high))
    return ", ".join([TYPES[key.type], *(f"{sign}{limit}" for sign, limit in signs if limit is not None)])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
