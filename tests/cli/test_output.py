"""stdout and stderr that are full, closed, left by their reader, or of few characters: work goes on, results do not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_ft.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNREAD

COMMAND = """
import sys, time
import click
from ddp_ft.cli.output import json_text, print_note, print_result
from ddp_ft.cli.process import run_command

@click.command()
@click.argument("kind")
@click.argument("texts", nargs=-1)
def command(kind, texts):
    if kind == "worker":
        for number in range(3):
            print_note(f"step {number}")
            print("a warning", file=sys.stderr)
        open(texts[0], "w").close()
    if kind == "result":
        print_result("the result " * 2000)
    if kind == "json":
        print(json_text({"text": texts[0]}))
    if kind == "text":
        print(texts[0], sys.getfilesystemencoding())
    if kind == "names":
        print(ascii([line.rstrip() for line in sys.stdin]))
    if kind == "files":
        print(open(texts[0]).fileno())

run_command(command)
"""
WAYS = {"full": ">/dev/full 2>&1", "closed": "<&- >&- 2>&-", "left": "2>&1 | :"}
ROOT = Path(__file__).parents[2]


def call(*words: object, way: str = "", stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """COMMAND with these words in a shell; its exit code, also if its output goes to another command."""
    shell = f'set -o pipefail; "$0" -c "$COMMAND" "$@" {way}'
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COMMAND": COMMAND, **environment}
    variables.pop("PYTHONUNBUFFERED", None)
    words = ("bash", "-c", shell, sys.executable, *map(str, words))
    return subprocess.run(words, env=variables, input=stdin, capture_output=True, timeout=60)


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_work_goes_on_without_its_output(tmp_path, way):
    done = call("worker", tmp_path / "work", way=way)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_DONE, b"", b"")
    assert (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("way", "code", "reason"),
    [
        (">/dev/full", EXIT_FAILED, "No space left on device"),
        (">&-", EXIT_FAILED, "Bad file descriptor"),
        ("| :", EXIT_UNREAD, ""),
    ],
)
def test_a_lost_result_is_an_error_and_that_of_a_reader_that_left_a_quiet_one(way, code, reason):
    done = call("result", way=way)
    message = f"Error: The result cannot be printed: {reason}.\n" if reason else ""
    assert (done.returncode, done.stderr.decode()) == (code, message)


def test_no_file_takes_the_number_of_a_closed_stream():
    assert int(call("files", __file__, way="<&- 2>&-").stdout) > 2


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("ascii", rb"\xb1 M\xfcll \u65e5"), ("latin-1", "± Müll ".encode("latin-1") + rb"\u65e5")],
)
def test_a_stream_gets_the_characters_that_it_holds(encoding, printed):
    text = "± Müll 日"
    assert call("text", text, PYTHONIOENCODING=encoding).stdout.startswith(printed + b" utf-8")
    answer = call("json", text, PYTHONIOENCODING=encoding).stdout.decode(encoding)
    assert json.loads(answer) == {"text": text}


def test_names_are_utf_8_in_every_locale():
    """Also on standard input; a byte that is no UTF-8 is kept as Python keeps those of file names."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert call("text", "日", **locale).stdout == rb"\u65e5 utf-8" + b"\n"
    assert call("names", stdin="日\n".encode() + b"\xff\n", **locale).stdout == rb"['\u65e5', '\udcff']" + b"\n"


def test_a_slow_reader_of_a_stream_that_does_not_block_gets_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMMAND": COMMAND}
    with os.fdopen(reader, "rb") as stream:
        words = [sys.executable, "-c", COMMAND.replace("* 2000", "* 20000"), "result"]
        process = subprocess.Popen(words, env=environment, stdout=writer)
        os.close(writer)
        received = stream.read()
    assert process.wait(60) == EXIT_DONE and received.decode() == "the result " * 20000 + "\n"
