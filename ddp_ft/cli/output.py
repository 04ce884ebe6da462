"""What a command prints: on streams that never end it, in characters that they hold; and its result.

Whoever reads the output may leave (`| head`), its disk may be full, the terminal closed, the stream not open at all.
Work goes on then, and what is printed is dropped. Only a result that has no other place than stdout is an error when it
is lost.
"""

import errno
import io
import json
import os
import select
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

import click

from ddp_ft.errors import EXIT_FAILED, EXIT_UNREAD
from ddp_ft.files import to_json


class LostOutputError(Exception):
    """A result could not be printed. `code`: how the command ends; that of a reader that left needs no message."""

    def __init__(self, failure: OSError) -> None:
        super().__init__(f"The result cannot be printed: {failure.strerror}.")
        self.code = EXIT_UNREAD if failure.errno == errno.EPIPE else EXIT_FAILED


class _Forgiving(io.FileIO):
    """A descriptor that drops what is written after the first failure, which is kept."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, also to a descriptor that somebody made non-blocking."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failure = error
                break
            if written is None:
                select.select([], [self], [])
            left = left[written or 0 :]
        return size


def has_colors(stream: TextIO) -> bool:
    """Whether colours may be written there: to a terminal that has some, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


_stdout: _Forgiving | None = None


def protect_streams() -> None:
    """Replace sys.stdout and sys.stderr by streams that never raise: what they cannot encode becomes escapes. Lines on
    sys.stdin are names of files.

    Descriptors 0 to 2 that are closed lead to /dev/null: else the next file that is opened would get what libraries
    print. Streams that are no descriptors, as those of a test, stay.
    """
    global _stdout
    for _ in range(3):
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        raw = _descriptor_of(stream, number)
        if raw is None:
            continue
        setattr(sys, name, _text(raw, stream))
        if number == 1:
            _stdout = raw


def _descriptor_of(stream: TextIO | None, number: int) -> _Forgiving | None:
    if stream is None:
        raw = _Forgiving(number, "w", closefd=False)  # /dev/null by now
        raw.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return raw
    try:
        is_plain = isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        is_plain = False
    return _Forgiving(number, "w", closefd=False) if is_plain else None


def _text(raw: _Forgiving, like: Any) -> io.TextIOWrapper:
    with suppress(OSError):
        if like is not None:
            like.flush()
    through = getattr(like, "write_through", False)
    return io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),  # without a buffer, as Python itself does for -u
        encoding=getattr(like, "encoding", "utf-8"), errors="backslashreplace",
        line_buffering=getattr(like, "line_buffering", False), write_through=through,
    )  # fmt: skip


def print_note(text: str) -> None:
    """Print a line about work whose result is elsewhere; it may be lost."""
    click.echo(text, file=sys.stdout)  # named, or else click would write UTF-8 to a stream that is ASCII


def print_result(text: str) -> None:
    """Print what the command was called for. Raises LostOutputError."""
    print_note(text)
    check_printed()


class ResultStream:
    """What a command was called for, as a stream of bytes in UTF-8 that is printed at once. Raises LostOutputError.

    `columns` is the width of the terminal; 0 if it is none.
    """

    def __init__(self) -> None:
        self.columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def write(self, content: bytes) -> int:
        """Print it."""
        click.echo(content.decode(), file=sys.stdout, nl=False)
        check_printed()
        return len(content)

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Print them one by one."""
        for part in parts:
            self.write(part)


def check_printed() -> None:
    """Raise LostOutputError if something on stdout was lost."""
    sys.stdout.flush()
    if _stdout is not None and _stdout.failure is not None:
        raise LostOutputError(_stdout.failure)


def json_text(value: Any) -> str:
    """JSON for people, in characters that stdout holds."""
    text = to_json(value).rstrip("\n")
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    return text


def restart_in_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode, with the same words, unless it takes file names as UTF-8 already.

    In a locale such as Latin-1 names of files and classes would be other texts than elsewhere, also in files that are
    written. What is printed stays in the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    printed = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": f"{printed}:backslashreplace", **os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)
