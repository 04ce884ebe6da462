"""What the fork server has done before a fork: all imports of a run, and the first use of what torch sets up late.

Nothing here may start a thread, as no other thread lives on in a fork; tests/support/test_fork_server.py looks.
"""

import timm.optim  # noqa: F401
import torch
import torch._dynamo
import torch.distributed
import torch.utils.tensorboard
import torchmetrics.functional.classification  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from PIL import Image

import ddp_ft.train
import ddp_ft.trackers.tensorboard
import tests.faults.fault
import tests.support.nets  # noqa: F401

# Each command imports what it needs only when it is called.
import ddp_ft.run  # isort: skip
import ddp_ft.scoring  # isort: skip
import ddp_ft.predicting  # isort: skip


def use_torch_once() -> None:
    """torch makes some of its registries at the first step of an optimizer."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


Image.init()  # its plug-ins
use_torch_once()
