"""Faults that strike a training process from inside, at a stated moment: a forward pass, or a change of the disk."""

import itertools
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "DDP_FT_TEST_FAULT"
PATIENCE = 180.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    """What happens, and when; once only, whatever is started again.

    `kind`: "wait" (until `release` is called), "kill" (SIGKILL to itself), "raise" (an exception), "full" (no file
    can grow any more), "slow" (from then on each forward pass of that kind takes seconds more).
    `moment`: "train" or "eval" (the `count`-th forward pass in that mode), or a regular expression (the `count`-th
    change of a path of the run folder that ends so).
    """

    folder: str
    kind: str
    moment: str
    count: int = 1
    rank: int = 0
    seconds: float = 3.0

    @property
    def reached(self) -> Path:
        """Comes into being when the moment has come."""
        return Path(self.folder) / "reached"

    def release(self) -> None:
        """End the waiting."""
        (Path(self.folder) / "released").touch()

    def environment(self) -> dict[str, str]:
        """What makes `arm_from_environment` arm it in another process."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return {VARIABLE: json.dumps(asdict(self))}

    def arm(self) -> None:
        """Strike when this process comes to that moment, if it is that rank."""
        if int(os.environ.get("RANK", "0")) != self.rank or self.reached.exists():
            return
        if self.moment in ("train", "eval"):
            watch_forward(self.moment == "train", self._count_forward)
        else:
            watch_changes(self._change_counter())

    def _count_forward(self, number: int) -> None:
        if number == self.count:
            self._strike()
        elif number > self.count and self.kind == "slow":
            time.sleep(self.seconds)

    def _change_counter(self) -> Callable[[str, str], None]:
        numbers = itertools.count(1)

        def count(event: str, path: str) -> None:
            is_it = event in ("open", "os.rename") and re.search(f"{self.moment}$", path) is not None
            if is_it and next(numbers) == self.count:
                self._strike()

        return count

    def _strike(self) -> None:
        self.reached.touch()
        if self.kind == "wait":
            _wait_for(Path(self.folder) / "released")
        elif self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "raise":
            raise RuntimeError("The net fails here.")
        elif self.kind == "full":
            # Not a full disk, but every write to a file fails as on one, for everybody and without privileges.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif self.kind == "slow":
            time.sleep(self.seconds)


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.01)


def arm_from_environment() -> None:
    """Arm the fault that this process was started with, if any."""
    if text := os.environ.get(VARIABLE):
        Fault(**json.loads(text)).arm()


def watch_forward(training: bool, count: Callable[[int], None]) -> None:
    """Call `count` with 1, 2, ... before each forward pass of a whole net of `tests.support.nets` in that mode."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen = 0

    def before(module: nn.Module, inputs: Any) -> None:
        nonlocal seen
        is_net = isinstance(module, nn.Sequential) and module.training == training
        # Black or abstract images are trials of the net, before it is trained.
        if is_net and not inputs[0].is_meta and inputs[0].any():
            seen += 1
            count(seen)

    register_module_forward_pre_hook(before)


def watch_changes(tell: Callable[[str, str], None]) -> None:
    """Call `tell(event, path)` right before each call of this process that changes the disk, from now on.

    Python's audit events and os.fsync; what libraries in C++ and Rust do between two of them is not seen.
    """
    inside = threading.local()

    def guarded(event: str, path: str) -> None:
        if not getattr(inside, "busy", False):
            inside.busy = True
            try:
                tell(event, path)
            finally:
                inside.busy = False

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if (path := _changed_path(event, args)) is not None:
            guarded(event, path)

    plain_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        guarded("os.fsync", str(_opened(descriptor)))
        plain_fsync(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync


def _changed_path(event: str, args: tuple[Any, ...]) -> str | None:
    if event == "open":
        path, _, flags = args
        return _absolute(path, -1) if flags & WRITING else None
    if event in ("os.rename", "os.link"):
        return _absolute(args[1], args[3])
    if event == "os.symlink":
        return _absolute(args[1], args[2])
    if event in ("os.remove", "os.rmdir"):
        return _absolute(args[0], args[1])
    if event == "os.mkdir":
        return _absolute(args[0], args[2])
    if event in ("os.truncate", "os.chmod"):
        return _absolute(args[0], -1)
    return None


def _absolute(path: Any, folder: int) -> str | None:
    if isinstance(path, int):
        return None
    base = _opened(folder) if isinstance(folder, int) and folder >= 0 else Path.cwd()
    return str(base / os.fsdecode(path))


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()
