"""What commands share: options made from the configuration's keys, and what they import."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ddp_ft.cli.completion import complete_assignment, completer
from ddp_ft.config.keys import Key
from ddp_ft.config.loading import parse_assignment, read_config_file
from ddp_ft.config.schema import KEYS, RunConfig

F = TypeVar("F", bound=Callable[..., Any])


def config_options(command: F) -> F:
    """Give a click command the flags of all keys that have one; they arrive as text, by dotted key name."""
    for key in reversed(list(KEYS.values())):
        if key.flag:
            command = _option(key, key.flag)(command)
    return command


def _option(key: Key, flag: str) -> Callable[[F], F]:
    default = key.null if key.default is None else key.default
    shown = "" if key.path in ("data.path", "model.name") else f"  [default: {default}; {key.kind}]"
    name, text = key.path.replace(".", "__"), f"{key.help}{shown}"
    return click.option(flag, name, metavar=key.metavar, help=text, shell_complete=completer(key))


# Options that several commands have.
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
also_option = click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RUN_OR_MODEL",
    help="One more model; their mean prediction counts. May be given several times.",
)
views_option = click.option(
    "--tta",
    "tta",
    type=click.Choice(["none", "flip", "crops"]),
    default="none",
    show_default=True,
    help="Views of each image: itself; its mirror image too; ten crops, half of them mirrored.",
)


def given_flags(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, by dotted key name."""
    return {name.replace("__", "."): value for name, value in values.items() if value is not None}


_RUN_DIR = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Where everything is written.  [default: runs/<data>-<model>]",
)
_CONFIG_FILE = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of keys, such as config.yaml of another run.",
)
_ASSIGNMENTS = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_assignment,
    help="Set any configuration key; wins over the rest. Repeatable.",
)


def run_options(command: F) -> F:
    """Give a click command --run-dir, --config (as config_file) and --set (as assignments)."""
    return _RUN_DIR(_CONFIG_FILE(_ASSIGNMENTS(command)))


def given_layers(config_file: Path | None, flags: dict[str, Any], assignments: Sequence[str]) -> list[dict[str, Any]]:
    """The settings that these options stand for, later ones winning."""
    layers = [read_config_file(config_file)] if config_file else []
    # One layer for all --set, as a preset or recipe among them stands below the whole layer that names it.
    return [
        *layers,
        given_flags(flags),
        {path: v for text in assignments for path, v in parse_assignment(text).items()},
    ]


def default_run_dir(config: RunConfig) -> Path:
    """runs/<data>-<model>, both by their last names."""
    assert config.data.path is not None and config.model.name is not None
    model = config.model.name.rsplit("/", 1)[-1].replace(":", "-")
    return Path("runs") / f"{config.data.path.resolve().name}-{model}"


@contextmanager
def importing() -> Iterator[None]:
    """Around a command's first imports of torch and its like, which make 400,000 objects and drop none.

    Python looks for no garbage meanwhile, and later never among what they made: a look through that takes 0.25 s, and
    a short run has seven of them.
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
