"""What commands share: options, some made from the configuration's keys, and slow imports."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ddp_ft.cli.completion import complete_assignment, completer
from ddp_ft.config.keys import Key
from ddp_ft.config.loading import parse_assignment, read_config_file
from ddp_ft.config.paths import code_file, expanded
from ddp_ft.config.schema import KEYS, REQUIRED, RunConfig
from ddp_ft.config.values import given_text
from ddp_ft.errors import UserError
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.inference.asked import Asked, parse_thresholds
from ddp_ft.run_folder.folds import members_of

F = TypeVar("F", bound=Callable[..., Any])


class PathOf(click.Path):
    """A path of the command line, with ~ and $VAR in it as in a shell; `Path`, or str for what may be a pattern too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. UserError for a variable that is not set, and for no path at all, which would be this folder."""
        if value == "" and param is not None:
            hint = "A shell's variable that is not set leaves nothing. The working folder itself is: ."
            raise UserError(f"{param.get_error_hint(ctx)} needs a path, and nothing was given.", hint)
        return super().convert(expanded(value) if isinstance(value, str) else value, param, ctx)


PATH, PATTERN = PathOf(path_type=Path), PathOf(path_type=str, allow_dash=True)


def config_options(command: F) -> F:
    """Give a click command the flags of all keys that have one. They arrive as text, by the key with `__` for dots."""
    for key in reversed(list(KEYS.values())):
        if key.flag:
            command = _option(key, key.flag)(command)
    return command


def _option(key: Key, flag: str) -> Callable[[F], F]:
    default = key.null if key.default is None else key.default
    shown = "" if key.path in REQUIRED else f" [{default}]"
    name, text = key.path.replace(".", "__"), f"{key.help}{shown}"
    return click.option(flag, name, metavar=key.metavar, help=text, shell_complete=completer(key))


def choice(flag: str, choices: Sequence[str], help: str, default: str = "") -> Callable[[F], F]:
    """An option for one of several words; by default the first."""
    return click.option(flag, type=click.Choice(choices), default=default or choices[0], show_default=True, help=help)


# Options that several commands have.
device_option = choice("--device", ["auto", "cpu", "cuda"], "Where to compute.")
data_option = click.option("--data", type=PATH, help="The run's data, if it has moved.")
model_argument = click.argument("model", type=PATH, metavar="RUN_OR_MODEL")
_ALSO = click.option(
    "--also", type=PATH, multiple=True, metavar="RUN_OR_MODEL",
    help="One more model; their mean prediction counts. May be given several times.",
)  # fmt: skip
_VIEWS = click.option(
    "--tta", type=click.Choice(["none", "flip", "crops"]),
    help="Views of each image: itself; its mirror image too; ten crops, half of them mirrored.  [default: as the run "
    "chose (eval.tta)]",
)  # fmt: skip


_THRESHOLD = click.option(
    "--threshold", metavar="VALUE",
    help="Several labels: from which probability on one is there: 0.3; NAME=0.3,NAME=0.7; FILE.json; or validation, "
    "where its F1 is largest on the run's own.  [default: 0.5]",
)  # fmt: skip
_BATCH_SIZE = click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N",
    help=f"Images of a process in one pass, {EVAL_CHUNK} at most.  [default: as many as fit]",
)  # fmt: skip
_WORKERS = click.option(
    "--workers", type=click.IntRange(min=0), metavar="N",
    help="Loader processes of each process.  [default: from the cores]",
)  # fmt: skip


def asked_options(command: F) -> F:
    """Give a click command RUN_OR_MODEL, --also, --tta, --threshold, --device, --batch-size and --workers, as one
    argument: `asked`."""

    @model_argument
    @device_option
    @_ALSO
    @_VIEWS
    @_THRESHOLD
    @_BATCH_SIZE
    @_WORKERS
    @wraps(command)
    def with_asked(**given: Any) -> Any:
        model, also, views, device = (given.pop(name) for name in ("model", "also", "tta", "device"))
        threshold, most, workers = (given.pop(name) for name in ("threshold", "batch_size", "workers"))
        if most and most > EVAL_CHUNK:
            hint = f"Images are dealt to processes in chunks of {EVAL_CHUNK}. Leave it out for whole chunks."
            raise UserError(f"--batch-size {most}: at most {EVAL_CHUNK} images are computed at once.", hint)
        thresholds = None if threshold is None else parse_thresholds(threshold)
        models = tuple(member for path in (model, *also) for member in members_of(path))
        return command(asked=Asked(models, views, device, thresholds, most, workers), **given)

    return cast(F, with_asked)


_RUN_DIR = click.option(
    "--run-dir", type=PATH, metavar="PATH", help="Where everything is written. [runs/<data>-<model>]"
)
_CONFIG_FILE = click.option(
    "--config", "config_file", type=PATH, metavar="PATH", help="YAML file of keys, such as config.yaml of another run."
)
_ASSIGNMENTS = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", shell_complete=complete_assignment,
    help="Set any configuration key; wins over the rest. Repeatable.",
)  # fmt: skip


# Keys of `data` that --set of a command with a trained model does not take, and why.
_NOT_HERE = {
    "data.path": "Here that is --data.",
    "data.workers": "Here that is --workers.",
    "data.sampling": "Here each image counts once.",
    **dict.fromkeys(("data.decoder", "data.range"), "The model keeps its own, with which it was trained."),
}


def data_settings(assignments: Sequence[str], only: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of `data` in these --set, as a layer.

    UserError for another, which a trained model no longer has, for one that would change nothing, and for one that is
    not among `only`, if any are.
    """
    layer = {path: value for text in assignments for path, value in parse_assignment(text).items()}
    if others := [path for path in layer if not path.startswith("data.")]:
        hint = "Such as --set data.image=COLUMN, for a table whose columns have other names."
        raise UserError(f"--set {others[0]}: here it is for the keys of data alone.", hint)
    for path in layer:
        if path in _NOT_HERE or (only and path not in only):
            raise UserError(f"--set {path} changes nothing here.", _NOT_HERE.get(path) or f"Known: {', '.join(only)}.")
    return layer


def data_settings_option(command: F) -> F:
    """Give a click command --set (as assignments) for `data_settings`."""
    text = "How this data is read, where it differs from the run's, such as data.image=COLUMN. Repeatable."
    return click.option("--set", "assignments", multiple=True, metavar="data.KEY=VALUE", help=text)(command)


def run_options(command: F) -> F:
    """Give a click command --run-dir, --config (as config_file) and --set (as assignments)."""
    return _RUN_DIR(_CONFIG_FILE(_ASSIGNMENTS(command)))


def given_layers(config_file: Path | None, flags: dict[str, Any], assignments: Sequence[str]) -> list[dict[str, Any]]:
    """The settings from these options, as layers of dotted keys; later ones win."""
    layers: list[dict[str, Any]] = [read_config_file(config_file)] if config_file else []
    given = {name.replace("__", "."): text for name, text in flags.items() if text is not None}
    layers.append({path: given_text(KEYS[path], text) for path, text in given.items()})
    # One layer for all --set, since a preset or recipe among them is below the whole layer that names it.
    layers.append({path: v for text in assignments for path, v in parse_assignment(text).items()})
    return [{path: _with_places(path, value) for path, value in layer.items()} for layer in layers]


def _with_places(path: str, value: Any) -> Any:
    """The value, with ~ and $VAR in it expanded if it may name a file."""
    key = KEYS.get(path)
    may_be_place = key is not None and (key.type is Path or key.names_file)
    return expanded(value) if may_be_place and isinstance(value, str) else value


def default_run_dir(config: RunConfig) -> Path:
    """runs/<data>-<model>, both by their last names."""
    assert config.data.path is not None and config.model.name is not None
    model = config.model.name.rsplit("/", 1)[-1].replace(":", "-")
    data = config.data.path.resolve().name
    if code_file(config.data.path):  # FILE.py:NAME; a folder keeps its name, whatever is in it, so that its runs resume
        data = data.replace(":", "-")
    return Path("runs") / f"{data}-{model}"


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and similar packages within the block without garbage collection.

    They make 400,000 objects and drop none. Later collections skip these objects too: each would take 0.25 s, and a
    short run has seven.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
