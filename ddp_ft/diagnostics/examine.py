"""All checks in their order. What needs torch is imported where it is needed: it may be what is broken."""

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ddp_ft.config.loading import make_config
from ddp_ft.diagnostics import launcher, machine, versions
from ddp_ft.diagnostics.examination import Asked, Examination, Tell
from ddp_ft.diagnostics.examine_run import examine_run
from ddp_ft.diagnostics.finding import PROBLEM, WARNING, Finding, guarded, tried
from ddp_ft.distributed.environment import Launch, read_launch, usable_cores

if TYPE_CHECKING:
    import torch

    from ddp_ft.distributed.world import World

# A rank that waits longer for the others than this will wait for ever; long work of rank 0 is waited for elsewhere.
MOST_MINUTES = 5.0
USUAL_SIDE = 224  # pixels of a model's input, where no model is given


def examine(asked: Asked, tell: Tell) -> dict[str, list[Finding]] | None:
    """The findings by family, on rank 0; None on all others. `tell` hears how many images were read, of how many."""
    launch, failure = tried("torchrun", read_launch)
    known = Examination(asked, make_config(*asked.layers), launch or Launch(), tell)
    known.check("machine", "packages", versions.packages)
    known.add("machine", failure)
    torch_is_there, _ = tried("torch", _import_torch)
    if torch_is_there:
        _examine_with_torch(known)
    return known.families if known.launch.rank == 0 else None


def _import_torch() -> bool:
    import torch
    import torchvision  # noqa: F401

    return torch.get_num_threads() > 0


def _examine_with_torch(known: Examination) -> None:
    import torch

    from ddp_ft.data.workers import default_workers
    from ddp_ft.distributed.device import pick_device
    from ddp_ft.distributed.world import World

    launch, config = known.launch, known.config
    device, failure = tried("device", lambda: pick_device(config.compute.device, launch))
    device = device or torch.device("cpu")
    known.workers = config.data.workers if config.data.workers is not None else 0
    if config.data.workers is None:
        known.workers = default_workers(device.type, launch.local_world_size)
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
        if world is None:  # rank 0 goes on by itself
            known.launch = Launch()
        examine_run(known, world or World(0, 1, 0, device))


def _machine(known: Examination, device: "torch.device") -> Iterator[Finding]:
    import torch

    launch, train = known.launch, known.config.train
    found = machine.look(launch.local_world_size, torch.get_num_threads())
    share = math.ceil(train.batch_size / launch.world_size)
    batch_bytes = 3 * (known.config.model.image_size or USUAL_SIDE) ** 2 * min(share, train.micro_batch or share)
    yield from machine.all_of(found, os.environ, known.workers, batch_bytes, device.type == "cpu")
    has_peers = launch.world_size > launch.local_world_size
    yield machine.hostname(socket.gethostname(), has_peers)


def _job(known: Examination, device: "torch.device") -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    yield from launcher.all_of(os.environ, known.launch, usable_cores(), gpus)
    port = os.environ.get("MASTER_PORT", "")
    yield machine.port(int(port) if port.isdecimal() else machine.DEFAULT_PORT, known.launch.distributed)


def _form_group(known: Examination, device: "torch.device", stack: ExitStack) -> "World | None":
    """The world, with its findings; None, and a problem, if it could not be formed."""
    from ddp_ft.diagnostics import ranks
    from ddp_ft.distributed.world import connect

    began = time.monotonic()
    minutes = min(known.config.compute.timeout_minutes, MOST_MINUTES)
    world, failure = tried("process group", lambda: stack.enter_context(connect(known.launch, device, minutes)))
    if world is None:
        known.add("ranks", failure)
        return None
    known.check("ranks", "process group", lambda: [ranks.group(world, time.monotonic() - began)])
    # Collective, and so called on all ranks.
    troubles = _troubles_of_node(known, device)
    asked, data = known.asked, known.config.data.path
    found, failure = tried("ranks", lambda: ranks.exchange(world, data, asked.run_dir, troubles))
    known.add("ranks", failure)
    hosts = len({each.host for each in found or ()})
    known.check("ranks", "ranks", lambda: ranks.compare(found or []))
    speeds, failure = tried("all-reduce", lambda: ranks.measure_reduction(world))
    known.add("ranks", failure)
    known.check("ranks", "all-reduce", lambda: [ranks.reduction(*speeds, hosts)] if speeds else [])
    return world


def _troubles_of_node(known: Examination, device: "torch.device") -> list[Finding]:
    """What is wrong with another node than rank 0's, as the first of its ranks sees it."""
    if known.launch.rank == 0 or known.launch.local_rank:
        return []
    found = [
        *guarded("cores and memory", lambda: _machine(known, device)),
        *guarded("job", lambda: _job(known, device)),
    ]
    return [finding for finding in found if finding.verdict in (WARNING, PROBLEM)]
