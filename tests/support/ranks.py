"""Several ranks on one machine, for tests: functions in a gloo (or NCCL) group."""

import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from tests.support.fork_server import PATIENCE, become, context, fork

T = TypeVar("T")


class RemoteTraceback(Exception):
    """The cause of an exception that came from a rank: its traceback as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_ranks(
    world_size: int,
    function: Callable[..., T],
    *args: Any,
    device: str = "cpu",
    timeout: float = PATIENCE,
    timeout_minutes: float = 1,
    connected: bool = True,
) -> list[T]:
    """`function(world, *args)` in `world_size` processes; the results in the order of ranks.

    If not `connected`, `function(*args)` in as many processes with the launcher's variables, to connect by itself.

    The function must be importable (no lambda, nothing nested). What the first failing rank raised is raised here,
    its traceback as the cause, and the other ranks are ended. `device` is as for `--device`; `timeout` in seconds.
    """
    from torch.distributed import TCPStore

    # As under torchrun, the parent holds the store: no port is picked by one process and bound by another.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environments = [_rank_environment(rank, world_size, store.port) for rank in range(world_size)]
    pipes, processes = [], []
    for environment in environments:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (environment, list(warnings.filters), function, args, device, timeout_minutes, connected)
        process = fork(_run_rank, sender, Path.cwd(), *arguments)
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return _collect(pipes, processes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}
    # The server's own environment is that of its start: a test's monkeypatched variables come this way.
    return {**os.environ, **{name: str(value) for name, value in {**ranks, **rendezvous, **agent}.items()}}


def _run_rank(
    sender: Connection, folder: Path, environment: dict[str, str], filters: Sequence[Any],
    function: Callable[..., Any], args: tuple[Any, ...], device: str, timeout_minutes: float, connected: bool,
) -> None:  # fmt: skip
    become(environment, folder)
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]  # a warning is an error here as in pytest
    import torch

    from ddp_ft.distributed.device import pick_device
    from ddp_ft.distributed.environment import read_launch
    from ddp_ft.distributed.world import connect

    torch.set_num_threads(1)
    if not connected:
        _send(sender, lambda: function(*args))
        return
    try:
        launch = read_launch()
        with connect(launch, pick_device(device, launch), timeout_minutes) as world:
            # A rank that has nothing to say to the others, and leaves while they still connect, would fail them.
            world.barrier()
            # Sent before the group is destroyed: that makes the other ranks fail too, of an error that says less.
            _send(sender, lambda: function(world, *args))
    except BaseException as error:
        sender.send((None, _portable(error)))


def _send(sender: Connection, work: Callable[[], Any]) -> None:
    try:
        outcome = (work(), None)
    except BaseException as error:
        outcome = (None, _portable(error))
    # Plain pickle, as multiprocessing's own would pass tensors by shared memory, which ends with this process.
    sender.send_bytes(pickle.dumps(outcome))


def _portable(error: BaseException) -> tuple[float, BaseException, str]:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return time.monotonic(), error, text


def _collect(pipes: list[Connection], processes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        pending = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = sorted(pending.values())
            raise TimeoutError(f"No answer in time from rank(s) {late}; rank(s) {sorted(results)} ended.")
        failures = []
        for pipe in ready:
            rank = pending[pipe]
            results[rank], failure = _receive(pipe, processes[rank], rank)
            failures += [(*failure, rank)] if failure else []
        if failures:
            _, error, text, rank = min(failures, key=lambda failure: (failure[0], failure[3]))
            raise error from RemoteTraceback(f"rank {rank}:\n{text}")
    return [results[rank] for rank in range(len(pipes))]


def _receive(pipe: Any, process: Any, rank: int) -> tuple[Any, tuple[float, BaseException, str] | None]:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join(5)
        ended = RuntimeError(f"Rank {rank} ended without an answer, with exit code {process.exitcode}.")
        return None, (time.monotonic(), ended, str(ended))
