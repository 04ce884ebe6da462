"""Texts of others in Markdown, as TensorBoard shows it."""

import html
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def escaped(text: str) -> str:
    """The text in one line, without anything that Markdown or HTML would take for more than a text."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def quoted(texts: Sequence[str], captions: Sequence[Sequence[str]]) -> str:
    """Texts, each below the lines of its caption."""
    blocks = [
        "\n\n".join([f"**{escaped(' · '.join(lines))}**" if lines else "", escaped(text)]).strip()
        for text, lines in zip(texts, captions, strict=True)
    ]
    return "\n\n---\n\n".join(blocks)
