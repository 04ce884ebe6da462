"""Completion in shells: `ddp-ft completion SHELL`, the values of options, names of models."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from ddp_ft.cli.output import print_result
from ddp_ft.config.keys import Key
from ddp_ft.config.schema import KEYS
from ddp_ft.config.user_cache import cache_folder
from ddp_ft.files import write_text
from ddp_ft.tasks.metric_table import METRICS
from ddp_ft.trackers.services.registry import SERVICES
from ddp_ft.version import versions_of

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
# Keys whose values are paths, and may be something else too.
PATHS = ("data.path", "model.weights", "freeze.cache_dir")
REFRESH = "import sys; sys.path[:] = {path!r}; from ddp_ft.cli.models import all_names; all_names()"

PROGRAM, VARIABLE = "ddp-ft", "_DDP_FT_COMPLETE"
_END = "\n    return 0\n}"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and values of ddp-ft.

    \b
    bash:  eval "$(ddp-ft completion bash)"     in ~/.bashrc
    zsh:   eval "$(ddp-ft completion zsh)"      in ~/.zshrc, after compinit
    fish:  ddp-ft completion fish > ~/.config/fish/completions/ddp-ft.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print_result(kind(completion, {}, PROGRAM, VARIABLE).source())


class Bash(BashComplete):
    """click's class, for values with = and :, at which bash divides words; and without a blank after `key=`."""

    source_template = BashComplete.source_template.replace(
        _END, '\n    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace' + _END, 1
    )  # fmt: skip

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is being typed, and that one, each in one piece."""
        args, begun = super().get_completion_args()
        words: list[str] = []
        joins = False
        for word in [*args, begun]:
            divider = re.fullmatch("[=:]+", word) is not None
            if words and (divider or joins):
                words[-1] += word
            else:
                words.append(word)
            joins = divider
        typed = words[-1]
        self._typed = typed.partition("=")[2] if typed.startswith("--") else typed  # the value of --option=value
        return words[:-1], typed

    def format_completion(self, item: CompletionItem) -> str:
        """The item without the part up to the last divider: bash replaces only the part after it."""
        before = max(self._typed.rfind("="), self._typed.rfind(":")) + 1
        is_divided = item.type == "plain" and item.value.startswith(self._typed[:before])
        return f"{item.type},{item.value[before:] if is_divided else item.value}"


add_completion_class(Bash)


def completer(key: Key) -> Complete:
    """The function that completes values of that key's flag, for click."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        return [*values(key, begun), *([CompletionItem(begun, type="file")] if key.path in PATHS else [])]

    return complete


def complete_assignment(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """KEY= of --set, and the values after it."""
    path, equals, value = begun.partition("=")
    if not equals:
        return [CompletionItem(f"{path}=", help=key.help) for path, key in KEYS.items() if path.startswith(begun)]
    found = values(KEYS[path], value) if path in KEYS else []
    return [CompletionItem(f"{path}={item.value}") for item in found]


def complete_key(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Configuration keys and their sections."""
    sections = dict.fromkeys(path.rpartition(".")[0] for path in KEYS)
    return _beginning([*filter(None, sections), *KEYS], begun)


def complete_model(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of models, with or without their library; with the tags of weights only after a dot."""
    return _beginning(_models(begun), begun)


def values(key: Key, begun: str) -> list[CompletionItem]:
    """The known values of a key that begin with `begun`."""
    if key.path == "model.name":
        files = [CompletionItem(begun, type="file")] if begun.startswith((".", "/", "~")) else []
        return [*_beginning(_models(begun), begun), *files]
    if key.path == "log.trackers":
        return _beginning(SERVICES, begun)
    if key.path == "eval.metric":
        return _beginning([*METRICS, key.null], begun)
    known = key.choices or (("true", "false") if key.type is bool else ())
    return _beginning([*known, *((key.null,) if key.optional and known else ())], begun)


def _beginning(known: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(each) for each in known if each.startswith(begun)]


def _models(begun: str) -> list[str]:
    names = cached_names()
    if names is None:  # for the next try: importing the libraries takes longer than a person waits
        subprocess.Popen(
            [sys.executable, "-c", REFRESH.format(path=sys.path)], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return []
    if begun and "/" not in begun:
        names = [*names, *(name.partition("/")[2] for name in names)]
    return names if "." in begun else [name for name in names if "." not in name]


def cached_names() -> list[str] | None:
    """The full names of all models, as an earlier call with the same libraries stored them; None if there was none."""
    file = _file()
    return file.read_text(encoding="utf-8").splitlines() if file is not None and file.is_file() else None


def store_names(names: Iterable[str]) -> None:
    """Store the names of all models for `cached_names`, if there is a cache folder that can be written."""
    file = _file()
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob("models-*"):
            old.unlink()
        write_text(file, "\n".join(names), durable=False)


def _file() -> Path | None:
    folder, versions = cache_folder(), versions_of(("timm", "torchvision"))
    if folder is None or len(versions) < 2:
        return None
    return folder / f"models-{'-'.join(f'{name}-{version}' for name, version in versions.items())}.txt"
