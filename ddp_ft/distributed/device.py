"""Which device a rank computes on, and whether its kernels repeat to the bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError


def pick_device(requested: str, launch: Launch) -> torch.device:
    """The device of this rank. Raises UserError for CUDA where there is none, or too few GPUs for the processes."""
    has_cuda = torch.cuda.is_available()
    if requested == "cpu" or (requested == "auto" and not has_cuda):
        return torch.device("cpu")
    if not has_cuda:
        raise UserError(
            "--device cuda: this machine has no usable CUDA device.",
            "Leave --device out, or say --device cpu.",
        )
    gpus = torch.cuda.device_count()
    if launch.local_world_size > gpus:
        raise UserError(
            f"{launch.local_world_size} processes on this node, but {gpus} GPU(s).",
            f"Start torchrun with --nproc_per_node={gpus}, or add --device cpu.",
        )
    return torch.device("cuda", launch.local_rank)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block torch uses operations that repeat to the bit alone, and raises RuntimeError for others.

    To be entered before CUDA is first used: cuBLAS reads its setting then (torch, "Reproducibility").
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
