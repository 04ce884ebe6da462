"""Exit codes, the exception for a mistake of the user, and how messages quote names and exceptions of others."""

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path

# Of all commands. STOPPED: saved on request, to be started again (EX_TEMPFAIL); INTERRUPTED: as shells report Ctrl-C;
# UNREAD: as they report a command whose reader left (128 + SIGPIPE), as in `ddp-ft runs | head -1`.
EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED, EXIT_UNREAD = 0, 1, 2, 75, 130, 141
# Characters of a library's exception in a message; a longer one loses its middle, since the end often has the cause.
MOST_REASON = 300
# Errors of the system that are about the file itself, and so are the same at each try.
_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class UserError(Exception):
    """Something that the user can correct.

    `message` says in one line what was given and what was expected; `hint` says what to do, in one or several lines.
    The command line prints both without a traceback and ends with exit code 2.
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


def nearest(given: str, known: list[str], limit: int = 3, folder: Path | None = None) -> str:
    """'Did you mean a, b?' with the names of `known` that are like `given`; empty if none is.

    Names of files are shown as paths below `folder`, so that what is shown can be given.
    """
    import difflib

    close = difflib.get_close_matches(given, known, n=limit, cutoff=0.5)
    shown = [str(folder / name) for name in close] if folder else close
    return f"Did you mean {', '.join(shown)}?" if close else ""


def known_names(given: str, known: Sequence[str]) -> str:
    """The hint for a name that is unknown: `nearest`, or all known names if none is like it."""
    return nearest(given, list(known)) or f"Known: {', '.join(known)}."


def printable(text: str) -> str:
    """The text in one line that can be printed and written anywhere.

    Line breaks, terminal codes and bytes that are not UTF-8, as file names and labels may hold, become escapes.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def one_line(error: BaseException) -> str:
    """Return what an exception says in one line of about MOST_REASON characters, without a full stop at its end.

    The name of its type if it says nothing.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > MOST_REASON:
        text = f"{text[: MOST_REASON // 2]} ... {text[-MOST_REASON // 2 :]}"
    return text.rstrip(".")


def reason_of(error: BaseException) -> str:
    """What the system says of a file, without number and path, if the exception is of a file; else `one_line`."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error of reading is none of the file itself, so that another try may succeed."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def typed_line(error: BaseException) -> str:
    """`one_line` after the name of the exception's type: "KeyError: 'size'"."""
    return f"{type(error).__name__}: {one_line(error)}"


def shortened(names: Sequence[str], limit: int = 10) -> str:
    """Return the first names, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def listed(lines: Sequence[str], limit: int = 20) -> list[str]:
    """Return the first lines, each indented by two spaces, and one that says how many more there are."""
    more = [f"  ... and {len(lines) - limit} more"] if len(lines) > limit else []
    return [*(f"  {line}" for line in lines[:limit]), *more]


def columns(rows: Mapping[str, str]) -> str:
    """A line for each name and its value, indented and aligned."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
