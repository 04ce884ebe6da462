"""The one exception that stands for a mistake of the user, and how messages put names and errors of others."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend.

    `message` says in one line what was given and what was expected; `hint` says what to do, and may have
    several lines. The command line prints both, without a traceback, and ends with exit code 2.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Exceptions pickle their args alone; the hint must survive the way from rank 0 to the others.
        return UserError, (self.message, self.hint)


def nearest(given: str, known: list[str], limit: int = 3) -> str:
    """'Did you mean a, b?' for the names of `known` that are like `given`; empty when none is."""
    import difflib

    close = difflib.get_close_matches(given, known, n=limit, cutoff=0.5)
    return f"Did you mean {', '.join(close)}?" if close else ""


def printable(text: str) -> str:
    """The text in one line that can be shown and written anywhere.

    File names and labels may hold line breaks, codes that steer a terminal, and bytes that are no UTF-8, on which
    writing fails: such characters become escapes.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """What a library's exception says, short enough to stand in a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= limit else f"{text[:limit]}..."


def shortened(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
