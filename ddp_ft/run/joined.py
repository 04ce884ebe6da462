"""Joining the processes of a job: connected, watched, and listening for requests to stop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ddp_ft.config.runtime import ComputeConfig
from ddp_ft.distributed.device import deterministic, pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.watchdog import watching
from ddp_ft.distributed.world import Machine, connect


@contextmanager
def joined(config: ComputeConfig, launch: Launch, stop_files: Sequence[Path], stacks: Path) -> Iterator[Machine]:
    """Within the block this process is one of the job's: connected, obeying signals and stop files, and watched.

    A process that hangs, or whose peer hangs, ends, and writes its stacks to the folder `stacks`. UserError if the
    device or the peers are not there.
    """
    device = pick_device(config.device, launch)
    uses_nccl = device.type == "cuda" and (launch.distributed or torch.cuda.device_count() > 1)
    stop = StopRequest(stop_files, looks=launch.rank == 0, has_agent=launch.has_agent, nccl=uses_nccl)
    one_machine = launch.local_world_size == launch.world_size
    with (
        deterministic(config.deterministic),
        stop.listening(),
        connect(launch, device, config.timeout_minutes) as world,
        watching(world, stacks, config.silence_seconds, one_machine),
    ):
        yield Machine(world, launch, stop)
