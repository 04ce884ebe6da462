"""Small models with adapters, for tests without a run."""

import torch
from torch import nn

from ddp_ft.config.schema import AdapterConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.models import build_model
from ddp_ft.models.adapter_names import is_adapter
from ddp_ft.models.adapters.inject import begin, with_adapter
from ddp_ft.models.libraries.base import call_with_images

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def of_library(name: str, seed: int = 0, **settings: object) -> BuiltModel:
    """A model of a library for 64 x 64 pixels with an adapter, in evaluation mode."""
    torch.manual_seed(3)
    built = build_model(name, 5, None if "test_" in name else 64)
    with torch.no_grad():
        for parameter in built.module.parameters():
            if parameter.abs().max() < 1e-3:  # heads and layer scales begin so small that nothing reaches the outputs
                parameter.normal_(std=0.3)
    return adapted(built, seed, **settings)


def around(module: nn.Module, head: frozenset[str] = frozenset(), **settings: object) -> BuiltModel:
    """A module of the test's own with an adapter."""
    processor = ImageProcessor(Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3))
    spec = {"library": "file", "name": "mine", "arguments": {}}
    return adapted(BuiltModel(module, processor, call_with_images, spec, head), 0, **settings)


def adapted(built: BuiltModel, seed: int, **settings: object) -> BuiltModel:
    """The model with an adapter of rank 2, unless given."""
    made = with_adapter(built, AdapterConfig(**{"name": "lora", "rank": 2, **settings}), seed)
    begin(made)
    made.module.eval()
    return made


def moved(built: BuiltModel) -> BuiltModel:
    """The model after some learning: all that the adapter has is changed."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in built.module.named_parameters():
            if is_adapter(name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return built
