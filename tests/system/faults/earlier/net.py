"""The model of the run in this folder."""

from torch import nn


def net(num_classes: int = 3) -> nn.Module:
    """Convolutions with batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, num_classes),
    )  # fmt: skip
