"""The process that all others of the tests are forked from, which has imported what they need (`preloaded`).

A new interpreter takes 5 s of CPU time until it trains, a fork of this server 0.2 s. Forks of the pytest process would
need no server, but inherit its threads' locks, and cannot use a GPU that it has touched.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a test waits for another process, which may have to share its cores with many: below the 240 of a test.
PATIENCE = 180.0
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preloaded"])


def fork(function: Callable[..., None], *args: Any) -> BaseProcess:
    """`function(*args)` in a process of its own, which has started; both must be importable."""
    process = context.Process(target=function, args=args, daemon=False)
    with _standing_in(ROOT):  # where the server, if this starts it, finds `tests`
        process.start()
    return process


@contextlib.contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def become(environment: dict[str, str], folder: str | Path | None = None) -> None:
    """In a fork: take this environment and working folder, as the server's are those of its start."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or ROOT)
