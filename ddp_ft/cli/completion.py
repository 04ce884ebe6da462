"""`ddp-ft completion SHELL`: the lines that make a shell complete what is typed behind ddp-ft."""

import re

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

PROGRAM, VARIABLE = "ddp-ft", "_DDP_FT_COMPLETE"
SHELLS = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc",
    "fish": "~/.config/fish/completions/ddp-ft.fish",
}
_END = "\n    return 0\n}"


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and values of ddp-ft.

    \b
    bash:  eval "$(ddp-ft completion bash)"     in ~/.bashrc
    zsh:   eval "$(ddp-ft completion zsh)"      in ~/.zshrc, behind compinit
    fish:  ddp-ft completion fish > ~/.config/fish/completions/ddp-ft.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(completion, {}, PROGRAM, VARIABLE).source())


class Bash(BashComplete):
    """click's, for values that hold = and :, at which bash divides words; and without a blank behind `key=`."""

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
        typed = words[-1] if words else ""
        # Of --option=value, what stands behind the first divider is the value.
        self._typed = typed.partition("=")[2] if typed.startswith("--") else typed
        return words[:-1], typed

    def format_completion(self, item: CompletionItem) -> str:
        """Without what stands before the last divider, as bash replaces what is behind it."""
        before = max(self._typed.rfind("="), self._typed.rfind(":")) + 1
        is_divided = item.type == "plain" and item.value.startswith(self._typed[:before])
        return f"{item.type},{item.value[before:] if is_divided else item.value}"


add_completion_class(Bash)
