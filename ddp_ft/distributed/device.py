"""The device of a rank, whether its kernels are deterministic, and whether its memory was too small."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError

# In messages of torch and of the libraries below it. NCCL has others, and its sums cannot be taken up again.
_NO_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: ",
)  # fmt: skip


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an operation failed for want of memory. Only torch's allocator of CUDA memory has an exception for it;
    libraries that allocate by themselves find nothing left when that has taken all."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def pick_device(requested: str, launch: Launch) -> torch.device:
    """The device of this rank. UserError for CUDA without a usable GPU, or with fewer GPUs than processes."""
    has_cuda = torch.cuda.is_available()
    if requested == "cpu" or (requested == "auto" and not has_cuda):
        return torch.device("cpu")
    if not has_cuda:
        raise UserError(
            "--device cuda: this machine has no usable CUDA device.", "Leave --device out, or give --device cpu."
        )
    gpus = torch.cuda.device_count()
    if launch.local_world_size > gpus:
        raise UserError(
            f"{launch.local_world_size} processes on this node, but {gpus} GPU(s).",
            f"Start torchrun with --nproc_per_node={gpus}, or add --device cpu.",
        )
    return torch.device("cuda", launch.local_rank)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Within the block torch uses only deterministic operations, and raises RuntimeError for others, if `enabled`.

    To be entered before CUDA is first used: cuBLAS reads its setting then (torch, "Reproducibility").
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
