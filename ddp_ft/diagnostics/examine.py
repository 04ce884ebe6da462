"""All checks in their order. torch is imported only where it is needed: it may be what is broken."""

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING

from ddp_ft.config.loading import make_config
from ddp_ft.diagnostics import launcher, machine, versions
from ddp_ft.diagnostics.examination import Asked, Examination, Progress
from ddp_ft.diagnostics.examine_run import examine_run
from ddp_ft.diagnostics.finding import PROBLEM, WARNING, Finding, guarded, tried
from ddp_ft.distributed.environment import Launch, read_launch, usable_cores

if TYPE_CHECKING:
    import torch

    from ddp_ft.distributed.world import World

# A rank that waits longer for the others than this will wait for ever; long work of rank 0 is waited for elsewhere.
MOST_MINUTES = 5.0
USUAL_SIDE = 224  # pixels of the input of a model that is not given


def examine(asked: Asked, report: Progress) -> dict[str, list[Finding]] | None:
    """The findings by family, on rank 0; None on all others. `report` is called with samples read, and all samples."""
    launch, failure = tried("torchrun", read_launch)
    known = Examination(asked, make_config(*asked.layers), launch or Launch(), report)
    known.check("machine", "packages", versions.packages)
    known.add("machine", failure)
    if tried("torch", lambda: import_module("torchvision"))[0] is not None:  # which imports torch
        _examine_with_torch(known)
    return known.families if known.launch.rank == 0 else None


def _examine_with_torch(known: Examination) -> None:
    import torch

    from ddp_ft.data.workers import default_workers
    from ddp_ft.distributed.device import pick_device
    from ddp_ft.distributed.world import World

    launch, config = known.launch, known.config
    device, failure = tried("device", lambda: pick_device(config.compute.device, launch))
    device, workers = device or torch.device("cpu"), config.data.workers
    known.workers = default_workers(device.type, launch.local_world_size) if workers is None else workers
    known.check(
        "machine", "cuda", lambda: versions.cuda(versions.look_at_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    known.add("machine", failure if launch.rank == 0 else [])
    known.check("machine", "cores and memory", lambda: _machine(known, device))
    known.check("job", "job", lambda: _job(known, device))
    with ExitStack() as stack:
        world = _form_group(known, device, stack) if launch.distributed else World(0, 1, 0, device)
        if world is None and launch.rank:
            return
        if world is None:  # rank 0 continues alone
            known.launch = Launch()
        examine_run(known, world or World(0, 1, 0, device))


def _machine(known: Examination, device: "torch.device") -> Iterator[Finding]:
    import torch

    launch, train = known.launch, known.config.train
    found = machine.look(launch.local_world_size, torch.get_num_threads())
    share = math.ceil(train.batch_size / launch.world_size)
    channels = known.config.data.channels or 3
    batch_bytes = channels * (known.config.model.image_size or USUAL_SIDE) ** 2 * min(share, train.micro_batch or share)
    yield from machine.all_of(found, os.environ, known.workers, batch_bytes, device.type == "cpu")
    yield machine.hostname(socket.gethostname(), has_peers=launch.world_size > launch.local_world_size)


def _job(known: Examination, device: "torch.device") -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    yield from launcher.all_of(os.environ, known.launch, usable_cores(), gpus)
    port = os.environ.get("MASTER_PORT", "")
    yield machine.port(int(port) if port.isdecimal() else machine.DEFAULT_PORT, known.launch.distributed)


def _form_group(known: Examination, device: "torch.device", stack: ExitStack) -> "World | None":
    """The world, and findings about it; None and a problem if it could not be formed."""
    from ddp_ft.diagnostics import ranks
    from ddp_ft.distributed.world import connect

    began = time.monotonic()
    group = connect(known.launch, device, min(known.config.compute.timeout_minutes, MOST_MINUTES))
    world = known.attempt("ranks", "process group", lambda: stack.enter_context(group))
    if world is None:
        return None
    known.check("ranks", "process group", lambda: [ranks.group(world, time.monotonic() - began)])
    # Collective, and so called on all ranks.
    troubles = _troubles_of_node(known, device)
    asked, data = known.asked, known.config.data.path
    found = known.attempt("ranks", "ranks", lambda: ranks.exchange(world, data, asked.run_dir, troubles))
    hosts = len({each.host for each in found or ()})
    known.check("ranks", "ranks", lambda: ranks.compare(found or []))
    speeds = known.attempt("ranks", "all-reduce", lambda: ranks.measure_reduction(world))
    known.check("ranks", "all-reduce", lambda: [ranks.reduction(*speeds, hosts)] if speeds else [])
    return world


def _troubles_of_node(known: Examination, device: "torch.device") -> list[Finding]:
    """Warnings and problems of another node than rank 0's, from its first rank; else nothing."""
    if known.launch.rank == 0 or known.launch.local_rank:
        return []
    found = guarded("cores and memory", lambda: _machine(known, device))
    found += guarded("job", lambda: _job(known, device))
    return [finding for finding in found if finding.verdict in (WARNING, PROBLEM)]
