"""Command lines as processes, with the interface of subprocess.Popen: forks of the server that has all imports."""

import atexit
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.fork_server import become, fork


class Command:
    """`python -m MODULE ARGS`, running; its output lies in files. `env` is laid over the environment.

    What only a new interpreter shows (how long it imports, and what) needs subprocess instead.
    """

    def __init__(
        self, module: str, args: Sequence[Any], env: dict[str, str] | None = None, cwd: Path | None = None,
        merged: bool = False,
    ) -> None:  # fmt: skip
        folder = tempfile.mkdtemp(prefix="ddp-ft-command-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        files = [str(Path(folder, name)) for name in ("stdout", "stdout" if merged else "stderr")]
        self._files = files[: 1 if merged else 2]
        self.args = ["-m", module, *map(str, args)]
        environment = {**os.environ, **(env or {})}
        self._process = fork(_run_module, module, self.args[2:], environment, cwd or Path.cwd(), files)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: None while it runs, -N after signal N."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, self.output())
        return self.returncode

    def output(self) -> str:
        """What it has written so far: to stdout, or to both if they are merged."""
        return self._read(0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), once it has ended; where they are merged the second is empty."""
        self.wait(timeout)
        return self._read(0), self._read(1)

    def _read(self, number: int) -> str:
        file = Path(self._files[number]) if number < len(self._files) else None
        return file.read_text(encoding="utf-8", errors="replace") if file is not None and file.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_module(
    module: str, *args: Any, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 120.0
) -> "subprocess.CompletedProcess[str]":
    """What `python -m MODULE ARGS` prints, and how it ends."""
    command = Command(module, args, env, cwd)
    try:
        stdout, stderr = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.wait(), stdout, stderr)


def _run_module(module: str, args: list[str], environment: dict[str, str], folder: Path, files: list[str]) -> None:
    for descriptor, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    become(environment, folder)
    sys.argv = [module, *args]
    sys.modules.pop(module, None)  # imported by the server; runpy wants it new
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
