"""Activations that are computed once more in the backward pass instead of being kept: less memory, more time."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddp_ft.errors import UserError


def recompute_blocks(module: nn.Module, name: str) -> None:
    """Keep only what goes into the blocks of a network, in training; random masks are the same when its inside is
    computed again. A batch norm inside counts each batch twice: the caller has to take the second one back.

    By the model's own `set_grad_checkpointing`, timm's name for it, where it has one; else for the blocks in its
    sequences. UserError if there are none. `name` is the model's.
    """
    if _recomputes_by_itself(module):
        return
    blocks = list(_blocks(module))
    if not blocks:
        raise UserError(
            f"compute.recompute: {name} is no sequence of blocks, and has no set_grad_checkpointing of its own.",
            "Leave it out, and lower --micro-batch instead; or give a model of your own that method.",
        )
    for block in blocks:
        block.forward = _recomputing(block.forward)


def _recomputes_by_itself(module: nn.Module) -> bool:
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is None:
        return False
    try:
        switch(True)
    except AssertionError:  # timm's way to say that a model cannot do it
        return False
    return True


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of plain sequences that have an inside. A subclass of Sequential, such as torchvision's
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
