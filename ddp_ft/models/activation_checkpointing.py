"""Activations that are recomputed in the backward pass instead of kept: less memory, more time."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddp_ft.errors import UserError


def recompute_blocks(module: nn.Module, name: str) -> None:
    """Keep only the inputs of a network's blocks in training; a block that is recomputed draws the same random masks.
    A batch norm inside counts each batch twice: the caller has to undo the second count.

    Uses the model's own `set_grad_checkpointing` (timm's name for it) if there is one, else the blocks in its
    sequences. UserError if there are none. `name` is the model's.
    """
    if hasattr(module, "set_grad_checkpointing"):
        with suppress(AssertionError):  # how timm reports that a model cannot do it
            module.set_grad_checkpointing(True)  # type: ignore[operator]
            return
    blocks = list(_blocks(module))
    if not blocks:
        raise UserError(
            f"compute.recompute: {name} is no sequence of blocks, and has no set_grad_checkpointing of its own.",
            "Leave it out, and lower --micro-batch instead; or give a model of your own that method.",
        )
    for block in blocks:
        block.forward = _recomputing(block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of plain sequences that have children. A subclass of Sequential, such as torchvision's
    convolution with its norm, is a block."""
    for child in module.children():
        if type(module) is nn.Sequential and type(child) is not nn.Sequential and any(child.children()):
            yield child
        else:
            yield from _blocks(child)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def recomputing(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return recomputing
