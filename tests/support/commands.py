"""Command lines as processes, with the interface of subprocess.Popen: forks of the server that has all imports."""

import atexit
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.fork_server import PATIENCE, become, fork


class Command:
    """`python -m MODULE ARGS`, running; its output lies in files, or goes to the `terminal`.

    What only a new interpreter shows (how long it imports, and what) needs subprocess instead.
    """

    def __init__(
        self, module: str, args: Sequence[Any], env: Mapping[str, str] | None = None, cwd: Path | None = None,
        merged: bool = False, terminal: str | None = None,
    ) -> None:  # fmt: skip
        folder = tempfile.mkdtemp(prefix="ddp-ft-command-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        names = ("stdout", "stdout" if merged else "stderr")
        files = [terminal or str(Path(folder, name)) for name in names]
        self._files = [] if terminal else files[: 1 if merged else 2]
        self.args = ["-m", module, *map(str, args)]
        environment = dict(os.environ if env is None else env)
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

    def wait_for_output(self, text: str, seconds: float = PATIENCE) -> None:
        """Until it has written that; fails if it ends before."""
        deadline = time.monotonic() + seconds
        while text not in self.output():
            assert self.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.02)

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
    module: str, *args: Any, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 120.0
) -> "subprocess.CompletedProcess[str]":
    """What `python -m MODULE ARGS` prints, and how it ends. Of torchrun the agent is a fork, its workers are not."""
    command = Command(module, args, env, cwd)
    try:
        stdout, stderr = command.communicate(timeout)
    finally:
        command.terminate()  # torchrun ends its workers then; a kill would orphan them
    return subprocess.CompletedProcess(command.args, command.wait(), stdout, stderr)


def run_torchrun(
    nproc: int, args: Sequence[Any], module: str = "ddp_ft.train", env: Mapping[str, str] | None = None,
    timeout: float = 120.0, cwd: Path | None = None,
) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """`torchrun --standalone --nproc_per_node NPROC -m MODULE ARGS`; `env` is laid over the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    words = ("--standalone", f"--nproc_per_node={nproc}", "-m", module, *args)
    return run_module("torch.distributed.run", *words, env=environment, cwd=cwd, timeout=timeout)


def run_words(
    words: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float = 150.0
) -> "subprocess.CompletedProcess[str]":
    """A command as it stands in the docs: python -m, ddp-ft and torchrun are forked, anything else is a subprocess."""
    if words[0] == "ddp-ft":
        return run_module("tests.support.console_script", *words[1:], env=env, cwd=cwd, timeout=timeout)
    if words[0] == "torchrun":
        return run_module("torch.distributed.run", *words[1:], env=env, cwd=cwd, timeout=timeout)
    if list(words[:2]) == ["python", "-m"]:
        return run_module(words[2], *words[3:], env=env, cwd=cwd, timeout=timeout)
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


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
