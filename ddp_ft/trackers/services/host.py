"""The process in which a service's library runs, with its imports, threads, hooks and waits.

It reads pickled (method, arguments) from its standard input, the first one ("start", (name, class, Start)), and writes
lines of JSON to its standard output: {"print": text}, and {"error": text} before it fails. Output of libraries goes to
its standard error, which is RUN/trackers/NAME.log.
"""

import fcntl
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ddp_ft.errors import typed_line
from ddp_ft.files import read_sound_json, to_json, write_text
from ddp_ft.plugins import load_object
from ddp_ft.trackers.services.base import Service, Start

# How long a process whose run was killed may take to send the rest; and how long its successor waits for it.
LAST_SECONDS = 30
PATIENCE_SECONDS = 60.0


def main() -> None:
    """Serve until the message to close, or until the run's process has ended."""
    messages, send = _channels()
    try:
        _, (name, reference, start) = pickle.load(messages)
        with (start.folder / f".{name}.lock").open("w") as lock:
            _wait_for(lock)
            _serve(load_object(reference)(start, lambda text: send({"print": text})), messages)
    except Exception as error:
        send({"error": typed_line(error)})
        raise


def _channels() -> tuple[Any, Callable[[dict[str, str]], None]]:
    """Standard input and a function that writes to standard output, neither of which libraries can reach any more."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, str]) -> None:
        with suppress(OSError):  # the run's process has ended
            output.write(json.dumps(message) + "\n")

    return sys.stdin.buffer, send


def _wait_for(lock: Any) -> None:
    """Wait until the process of an earlier start has ended, so that they do not both send the same rows."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(OSError):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:  # it hangs, or the file system has no locks
            return
        time.sleep(0.1)


def _serve(service: Service, messages: Any) -> None:
    while True:
        try:
            method, arguments = pickle.load(messages)
        except (EOFError, pickle.UnpicklingError):  # the run was killed
            signal.alarm(LAST_SECONDS)
            method, arguments = "close", ()
        getattr(service, method)(*arguments)
        if method == "close":
            return


def read_facts(start: Start, name: str) -> dict[str, Any]:
    """The facts that an earlier start stored under that name; empty if there are none."""
    return read_sound_json(start.folder / f"{name}.json", dict)


def write_facts(start: Start, name: str, facts: Mapping[str, Any]) -> None:
    """Store facts for the next start."""
    write_text(start.folder / f"{name}.json", to_json(dict(facts)), durable=False)
