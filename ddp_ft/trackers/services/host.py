"""The process in which a service's library runs: what it imports, its threads, its hooks and its waiting stay here.

It reads pickled (method, arguments) from its standard input, the first of which is ("start", (name, class, Start)), and
writes lines of JSON to its standard output: {"say": text}, and {"error": text} before it gives up. What libraries
print goes to its standard error, which is RUN/trackers/NAME.log.
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

from ddp_ft.files import read_sound_json, to_json, write_text
from ddp_ft.plugins import load_object
from ddp_ft.trackers.services.base import Service, Start

# How long a process whose run was killed may take to hand on what it has; and how long its successor waits for it.
LAST_SECONDS = 30
PATIENCE_SECONDS = 60.0


def main() -> None:
    """Serve until told to close, or until the run is gone."""
    messages, tell = _channels()
    try:
        _, (name, reference, start) = pickle.load(messages)
        with (start.folder / f".{name}.lock").open("w") as lock:
            _wait_for(lock)
            _serve(load_object(reference)(start, lambda text: tell({"say": text})), messages)
    except Exception as error:
        tell({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        raise


def _channels() -> tuple[Any, Callable[[dict[str, str]], None]]:
    """Standard input and output, which libraries cannot reach from here on."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(message: dict[str, str]) -> None:
        with suppress(OSError):  # the run is gone
            output.write(json.dumps(message) + "\n")

    return sys.stdin.buffer, tell


def _wait_for(lock: Any) -> None:
    """Until the process of an earlier start has ended, lest both send the same rows."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:  # or the file system has no locks
                return
            time.sleep(0.1)
        else:
            return


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
    """What an earlier start stored under that name; empty if there was none."""
    return read_sound_json(start.folder / f"{name}.json", dict)


def write_facts(start: Start, name: str, facts: Mapping[str, Any]) -> None:
    """Store what the next start resumes with."""
    write_text(start.folder / f"{name}.json", to_json(dict(facts)), durable=False)
