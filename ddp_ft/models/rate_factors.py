"""How fast each tensor learns for its size."""

import math

import torch
from torch import nn

from ddp_ft.contracts import BuiltModel
from ddp_ft.models.adapter_names import is_adapter

# Adam moves each weight by about its rate, whatever its size, and networks differ in that by a factor of ten: in
# MobileNetV2 the root mean square is 0.05 in the last blocks, 0.2 in the stem, 0.3 in the weights of batch norm; in
# EfficientNet-Lite0 0.06, 0.7 and 2.2. So one rate is a large step for the one and a small one for the other. In
# proportion to the size, as in Adafactor (arXiv 1804.04235, section 8), it is the same for both (docs/accuracy.md).
USUAL_SIZE = 0.1
# Biases may be 0; they still have to learn.
SMALLEST_SIZE = 0.01


def rate_factors(model: BuiltModel) -> dict[str, float]:
    """Return for each parameter, but for the head's and an adapter's, which have no size yet, its root mean square over
    USUAL_SIZE, rounded to a power of two: so that all machines find the same, and there are few groups."""
    named = model.module.named_parameters()
    return {name: _factor(each) for name, each in named if name not in model.head and not is_adapter(name)}


@torch.no_grad()
def _factor(parameter: nn.Parameter) -> float:
    size = float(parameter.detach().double().square().mean().sqrt())
    if not math.isfinite(size):  # it is empty, or broken, which the first step tells
        return 1.0
    return 2.0 ** round(math.log2(max(size, SMALLEST_SIZE) / USUAL_SIZE))
