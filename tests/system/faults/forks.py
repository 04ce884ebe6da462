"""`ddp_ft.train` as forked ranks with real exit codes, and a parent that ends the job as torchrun's agent does."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.support.fork_server import PATIENCE, become, context, fork
from tests.system.faults.fault import Fault, arm_from_environment

# After the first rank that fails the others are asked to end, and after this many seconds made to.
SHUTDOWN_SECONDS = 5.0
SHOWN = 3000  # characters of the end of what was printed, where a job did not end


class ForkedJob:
    """Ranks of one start of the command. With a single one there is no launcher: the exit codes are those of a user.

    `more` is laid over the environment. `prepare(*values)` is called in each rank before the command. With a `store` a
    single rank has a launcher too; with that of an earlier job its keys are all there, as in a restart by torchrun's
    agent.
    """

    def __init__(
        self, world_size: int, args: Sequence[str], more: dict[str, str] | None = None,
        prepare: Callable[..., None] | None = None, values: tuple[Any, ...] = (), store: Any = None,
    ) -> None:  # fmt: skip
        self.store = store or (make_store() if world_size > 1 else None)
        self._receiver, sender = context.Pipe(duplex=False)
        self._said = b""
        self.processes = []
        for rank in range(world_size):
            environment = {**os.environ, **_variables(rank, world_size, self.store), **(more or {})}
            self.processes.append(fork(_run, sender, Path.cwd(), environment, list(args), prepare, values))
        sender.close()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def leave(self) -> None:
        """Read no more of what is printed, as `| head` does."""
        self._receiver.close()

    def wait_for(self, path: Path, seconds: float = PATIENCE) -> None:
        """Until the path is there; fails if the job ends before."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            self._listen(0.01)
            if not any(process.is_alive() for process in self.processes):
                raise AssertionError(f"The job ended before {path} came:\n{self.end()[1]}")
            assert time.monotonic() < deadline, f"{path} did not come:\n{self.end()[1]}"

    def end(self, seconds: float = PATIENCE) -> tuple[list[int], str]:
        """Exit codes by rank and all that was printed, once all ranks have ended; fails when time is up."""
        deadline, asked = time.monotonic() + seconds, None
        try:
            while any(process.is_alive() for process in self.processes):
                self._listen(0.05)
                now = time.monotonic()
                if now > deadline:
                    raise AssertionError(f"Not all ranks ended in {seconds} s:\n{self._said.decode()[-SHOWN:]}")
                if asked is None and any(process.exitcode for process in self.processes):
                    asked = now
                    for process in self.processes:
                        process.terminate()
                if asked is not None and now > asked + SHUTDOWN_SECONDS:
                    for process in self.processes:
                        process.kill()
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        while self._listen(0):
            pass
        self._receiver.close()
        return [process.exitcode or 0 for process in self.processes], self._said.decode()

    def _listen(self, seconds: float) -> bool:
        sentinels = [process.sentinel for process in self.processes if process.is_alive()]
        if self._receiver.closed or self._receiver not in wait([self._receiver, *sentinels], seconds):
            return False
        # The ranks write to the pipe as to a terminal: it holds plain text, and no messages of multiprocessing.
        chunk = os.read(self._receiver.fileno(), 1 << 16)
        self._said += chunk
        if not chunk:
            self._receiver.close()
        return bool(chunk)


def run_forked(
    world_size: int, args: Sequence[str], seconds: float = PATIENCE, **options: Any
) -> tuple[list[int], str]:
    """Exit codes by rank and what was printed by one start of the command."""
    return ForkedJob(world_size, args, **options).end(seconds)


def train_killed(args: Sequence[str], fault_folder: Path, checkpoint: str = r"step_\d{8}", count: int = 3) -> None:
    """A start of the command in one process that is killed while the `count`-th such checkpoint takes its place.

    A test that waits until a checkpoint is there, and kills then, comes too late where the whole run takes a second.
    """
    fault = Fault(str(fault_folder), "kill", f"checkpoints/{checkpoint}", count)
    codes, said = run_forked(1, args, more=fault.environment())
    assert codes == [-signal.SIGKILL], said


def make_store() -> Any:
    """The store of a launcher, for ranks on this machine."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _variables(rank: int, world_size: int, store: Any) -> dict[str, str]:
    if store is None:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {name: str(value) for name, value in {**ranks, **agent, "TORCHELASTIC_RESTART_COUNT": 0}.items()}


def _run(
    sender: Connection, folder: Path, environment: dict[str, str], args: list[str],
    prepare: Callable[..., None] | None, values: tuple[Any, ...],
) -> None:  # fmt: skip
    os.dup2(sender.fileno(), 1)
    os.dup2(sender.fileno(), 2)
    sender.close()
    become(environment, folder)
    import torch

    from ddp_ft.cli.process import run_command
    from ddp_ft.train import train

    torch.set_num_threads(1)
    arm_from_environment()
    if prepare is not None:
        prepare(*values)
    run_command(train, args)
