"""The module as training calls it, on one process or many: DistributedDataParallel, and how it sums gradients."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ddp_ft.distributed import World

# torch 2.15 renamed the option and warns about the old name.
_NEW_NAME, _OLD_NAME = "forward_sync_buffers", "broadcast_buffers"
_HAS_NEW_NAME = _NEW_NAME in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {_NEW_NAME if _HAS_NEW_NAME else _OLD_NAME: False}


def replicate(module: nn.Module, world: World, distributed: bool) -> nn.Module:
    """The module as training calls it: in DistributedDataParallel under torchrun, else in DataParallel if one
    process sees several GPUs, else as it is."""
    if distributed:
        # Buffers are not broadcast: batch norm's statistics are averaged when they are needed, which loses no
        # rank's samples, and a rank without a batch would hang in that broadcast. Nor are they at the beginning:
        # all ranks have the same weights by now, and after a restart each has its own statistics.
        device_ids = [world.device.index] if world.device.type == "cuda" else None
        replica = DistributedDataParallel(
            _Trainee(module), device_ids=device_ids, gradient_as_bucket_view=True, init_sync=False, **KEEP_BUFFERS
        )
        _settle_buckets(replica)
        return replica
    if world.device.type == "cuda" and torch.cuda.device_count() > 1:
        return DataParallel(module)
    return module


class _Trainee(nn.Module):
    """The module inside DDP. Called without inputs it gives the sum of all that learns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """The module's outputs."""
        if inputs is None:
            return torch.stack([p.sum().float() for p in self.parameters() if p.requires_grad]).sum()
        outputs: Tensor = self.module(inputs)
        return outputs


def _settle_buckets(replica: nn.Module) -> None:
    """Bring DDP's buckets into their final layout before the first step that counts.

    DDP lays its buckets out anew once, in the order in which the first backward pass made the gradients ready, and
    the layout decides in which order ranks are summed: from three ranks on a restart gave other bits. After this
    backward pass, which costs one reduction and no forward pass, the layout follows from the parameters alone.
    """
    replica().backward()
    replica.zero_grad(set_to_none=True)
