"""What can be told of an architecture only by trying it: its head, and whether it takes an image size.

Tried on the meta device, where tensors have shapes alone, so that even a large model costs little.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from ddp_ft.models.library import one_line


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built meanwhile keep the shapes of their parameters alone; all other tensors are real.

    For what cannot be built under `torch.device("meta")`: torchvision's regnets compute widths with tensors.
    """
    hook: Any = _shape_alone  # torch declares that hooks return nothing, and uses what they return
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _shape_alone(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    # None means: as it is. A parameter that is on the meta device already may be shared and must stay one.
    if parameter is None or parameter.is_meta or is_lazy(parameter):
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def build_shapes(create: Callable[[], nn.Module]) -> nn.Module:
    """The module on the meta device, or for real if it cannot be built there; draws no random numbers."""
    # A factory that loads weights of its own is warned that doing so on the meta device has no effect.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for cheap in (torch.device("meta"), parameters_on_meta()):
            try:
                with cheap:
                    return create().to("meta")
            except Exception:
                continue
        return create()


def head_names(module: nn.Module, other: nn.Module) -> frozenset[str]:
    """The parameters whose shape differs between two builds of one architecture with unequal outputs."""
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return frozenset(name for name, each in module.named_parameters() if shapes.get(name) != each.shape)


def why_not_size(module: nn.Module, shapes: nn.Module, size: tuple[int, int]) -> str:
    """Why the model cannot take images of that size, in one line; empty if it can."""
    # Some operations know no meta device, so what fails there is asked once more for real.
    return _why_not(shapes, size) and _why_not(module, size)


def _why_not(module: nn.Module, size: tuple[int, int]) -> str:
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(torch.zeros(2, 3, *size, device=device))
    except Exception as error:
        return one_line(error)
    finally:
        module.train(was_training)
    return ""
