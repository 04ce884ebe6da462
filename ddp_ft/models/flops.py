"""What a model costs: the arithmetic of one sample."""

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddp_ft.models.introspection import Trial


def flops_per_sample(module: nn.Module, trial: Trial) -> float | None:
    """Floating-point operations of a forward pass of one sample, a multiplication and an addition being two.

    Convolutions, products of matrices and attention are counted, as torch's FlopCounterMode does. On a copy without
    values, on the meta device: the module is left as it is. None where the model does not run there.
    """
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors}
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            shapes = copy.deepcopy(module, memo).eval()
            with FlopCounterMode(display=False) as counter:
                trial(shapes, samples=1)
    except Exception:  # an operation that has no meta device, or a network that looks at values
        return None
    return float(counter.get_total_flops())


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
