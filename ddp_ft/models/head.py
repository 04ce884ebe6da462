"""How a new head begins."""

from collections.abc import Collection

import torch
from torch import nn

# Small, so that the first predictions are nearly uniform and the first gradients do not tear at the pretrained
# layers; not zero, since a ReLU behind the head (SqueezeNet) would then stay dead. The libraries' own
# initialisations are meant for training from scratch: timm's EfficientNets start at +-1/sqrt(outputs), a first
# loss of several times ln(outputs).
HEAD_STD = 0.01


@torch.no_grad()
def initialise_head(module: nn.Module, head: Collection[str]) -> None:
    """Draw the head's weights from a normal distribution of width HEAD_STD and set its biases to 0."""
    for name, parameter in module.named_parameters():
        if name in head:
            nn.init.normal_(parameter, std=HEAD_STD) if parameter.ndim > 1 else nn.init.zeros_(parameter)
