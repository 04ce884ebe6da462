"""Models that only make sense on a GPU: one with little memory, and one that has its waits for the device counted."""

import warnings

import torch
from torch import nn

from tests.support import nets

THIS_FILE = __file__
# For torch's tensors; the context of CUDA comes on top.
MEMORY_MIB = 400
WIDTH = 256


def in_little_memory(num_classes: int = 3) -> nn.Module:
    """Some 60 MiB of activations an image at 64 pixels in fp32, where torch may use `MEMORY_MIB`: for 16 images it is
    refused more. Without batch norm, so that the sizes of micro-batches do not matter."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(MEMORY_MIB * 2**20 / total)
    wide = [layer for _ in range(6) for layer in (nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU())]
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), nn.GELU(), *wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(WIDTH, num_classes),
    )  # fmt: skip


WAITING = "called a synchronizing CUDA operation"


def counted(num_classes: int = 3) -> nn.Module:
    """`with_batch_norm`; from here on torch prints a warning for each operation that waits for the device."""
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    return nets.with_batch_norm(num_classes)
