"""What the fork server has done before a fork: all imports of a run, and the first use of what torch sets up late.

Nothing here may start a thread, as no other thread lives on in a fork, nor ask CUDA for anything, which forks could not
use then; test_fork_server.py looks.
"""

import contextlib
import gc
import importlib
from collections.abc import Iterator

import torch
from PIL import Image

# Commands import what they need only when they are called, and much of it imports other packages as late.
MODULES = (
    "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed", "torch.utils.tensorboard",
    "torchvision.transforms.v2",
    "torchmetrics.functional.classification", "torchmetrics.functional.regression", "pytest",
    "ddp_ft.train", "ddp_ft.evaluate", "ddp_ft.predict", "ddp_ft.run",
    "ddp_ft.inference.evaluate_models", "ddp_ft.inference.predict_files",
    "ddp_ft.models.libraries.timm", "ddp_ft.trackers.tensorboard", "ddp_ft.models.libraries.user_file",
    "ddp_ft.reporting.writing", "torch.distributed.run", "tests.support.nets", "tests.system.faults.fault",
    "encodings.idna", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
    "ddp_ft.models.libraries.transformers",
)  # fmt: skip


def use_torch_once() -> None:
    """torch makes some of its registries at the first step of an optimizer."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Within the block there are no GPUs, and CUDA's library is not asked: optimizers, and modules of torch.compile,
    want to know their number."""
    count = getattr(torch._C, "_cuda_getDeviceCount", None)  # a build for CPUs alone has none
    if count is not None:
        torch._C._cuda_getDeviceCount = lambda: 0
    yield
    if count is not None:
        torch._C._cuda_getDeviceCount = count


gc.disable()
with without_cuda():
    for module in MODULES:
        importlib.import_module(module)
    Image.init()  # its plug-ins
    use_torch_once()
# A fork shares the memory of all this as long as nothing touches it, which a look for garbage would.
gc.freeze()
gc.enable()
