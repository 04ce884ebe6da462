"""The physical limit: the same model and batch on tensors that are in the device's memory already.

Forward, backward, optimizer, and nothing else: no files, no images, no logging, no clipping, nothing that waits.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.jpegs import CLASSES
from benchmarks.workload import WARM_UP_STEPS, Clock, Outcome, Workload, adamw, autocast, build
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.world import World, connect
from ddp_ft.models.precision import is_convolutional, place
from ddp_ft.training.malloc import keep_freed_memory

BATCHES = 4  # different ones in turn: one alone would be warmer in the caches than any real batch
MOST_STEPS = 60


def measure(workload: Workload, ddp: bool = False) -> Outcome:
    """Images per second of all processes together; with `ddp` they reduce their gradients, else none waits for another.

    On each process; all see the same sum.
    """
    launch = read_launch()
    device = pick_device(workload.device, launch)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    with connect(launch, device, 10) as world:
        trainer = _Trainer(workload, world, ddp and launch.distributed)
        clock = Clock(workload.device)
        for step in range(WARM_UP_STEPS + max(2, min(MOST_STEPS, workload.steps - WARM_UP_STEPS))):
            if step == WARM_UP_STEPS - 1:
                world.barrier()  # all are measured while all compute
            trainer.step(step)
            clock.tick(workload.batch)
        own = clock.stop()
        speed = world.sum(torch.tensor([own.images_per_second], device=device)).item()
    notes = f"channels_last={trainer.channels_last}"
    return replace(own, images_per_second=speed, images=own.images * world.size, notes=notes)


class _Trainer:
    def __init__(self, workload: Workload, world: World, ddp: bool) -> None:
        self.workload = workload
        module = build(workload).module.train()
        self.channels_last = is_convolutional(module)
        module = place(module, world.device, self.channels_last)
        self.optimizer = adamw(workload, module, fused=True)
        self.replica: nn.Module = _in_ddp(module, world.device) if ddp else module
        self.batches = [self._batch(number, world.device) for number in range(BATCHES)]

    def _batch(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        count, side = self.workload.batch, self.workload.image_size
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(count, 3, side, side, generator=generator).to(device)
        format_ = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=format_), torch.arange(count, device=device) % CLASSES

    def step(self, number: int) -> None:
        images, labels = self.batches[number % BATCHES]
        with autocast(self.workload):
            outputs = self.replica(images)
            loss = F.cross_entropy(outputs, labels, label_smoothing=self.workload.label_smoothing)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _in_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    assert dist.is_initialized()
    ids: Any = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
