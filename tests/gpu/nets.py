"""Models that only make sense on a GPU: one with little memory, and one that has its waits for the device counted."""

import warnings

import torch
from torch import Tensor, nn

from tests.support import nets

THIS_FILE = __file__
# For torch's tensors; the context of CUDA comes on top.
MEMORY_MIB = 400
WIDTH = 256


class _ByPixel(nn.Module):
    """Some 60 MiB of activations an image at 64 pixels in fp32. Of matrix products alone, since cuDNN has other words
    for a lack of memory; and without batch norm, so that the sizes of micro-batches do not matter."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        wide = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())]
        self.body = nn.Sequential(nn.Linear(3, WIDTH), nn.GELU(), *wide)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(images.flatten(2).transpose(1, 2)).mean(1))
        return outputs


def in_little_memory(num_classes: int = 3) -> nn.Module:
    """A network for which torch may use `MEMORY_MIB`, so that for 16 images it is refused more."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(MEMORY_MIB * 2**20 / total)
    return _ByPixel(num_classes)


WAITING = "called a synchronizing CUDA operation"


def counted(num_classes: int = 3) -> nn.Module:
    """`with_batch_norm`; from here on torch prints a warning for each operation that waits for the device."""
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    return nets.with_batch_norm(num_classes)
