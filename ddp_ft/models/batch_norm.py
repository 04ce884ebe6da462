"""Batch norm's running statistics: which tensors they are, their mean over ranks, and many tensors as one vector."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError


def copy_all(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each source into its target, many at once where a library can."""
    if sources:  # torch refuses empty lists
        torch._foreach_copy_(targets, sources)


def forward_statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers of normalisation layers that a forward pass in training mode changes."""
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.training]
    return [buffer for layer in layers for buffer in layer.buffers()]


def batch_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return running mean and variance of every normalisation layer that has them, by their names in state_dict."""
    return {
        f"{name}.{kind}" if name else kind: getattr(layer, kind)
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
        for kind in ("running_mean", "running_var")
    }


def is_synchronised(module: nn.Module) -> bool:
    """Whether forward passes in training mode wait for each other on all ranks."""
    return any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())


@contextmanager
def averaged_statistics(module: nn.Module, world: World) -> Iterator[None]:
    """In the block the running statistics are the mean over ranks; after it each rank has its own again.

    So training does not depend, to the bit, on how often it is evaluated or saved.
    """
    statistics = list(batch_statistics(module).values())
    own = [tensor.clone() for tensor in statistics]
    if statistics and world.size > 1:
        # One sum of all: one for each of a hundred small tensors took a fifth of a step.
        copy_all(in_parts(world.sum(in_one(statistics)).div_(world.size), statistics), statistics)
    try:
        yield
    finally:
        copy_all(own, statistics)


def in_one(tensors: Iterable[Tensor]) -> Tensor:
    """Return all elements in one vector; an empty one for no tensors."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0)


def in_parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the vector in the shapes of `like`, the tensors that `in_one` joined."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def prepare_batch_norm(module: nn.Module, batch_norm: str, device_type: str, world_size: int) -> nn.Module:
    """Return the module, its batch norm synchronised over processes if `batch_norm` is "sync" and there are several.

    Parameters, buffers and their names stay. Raises UserError for several processes without CUDA.
    """
    if batch_norm != "sync" or world_size == 1 or not any(isinstance(each, _BatchNorm) for each in module.modules()):
        return module
    if device_type != "cuda":
        raise UserError(
            f"model.batch_norm = sync: SyncBatchNorm does not run on the CPU, and these are {world_size} processes.",
            "Use model.batch_norm = frozen or train, or a single process.",
        )
    from timm.layers import convert_sync_batchnorm

    # timm's does the same as torch's, and keeps the activation inside its own BatchNormAct2d, which torch's loses.
    converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
