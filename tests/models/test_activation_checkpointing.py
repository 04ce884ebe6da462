"""Blocks whose inside is computed again for the backward pass: less is kept, and nothing else changes."""

import pytest
import torch

from ddp_ft.errors import UserError
from ddp_ft.models import build_model
from ddp_ft.models.activation_checkpointing import recompute_blocks
from tests.support import nets
from tests.support.marks import slowly
from tests.support.runs import train_on
from tests.system.faults.comparing import curve

MODELS = ("timm/test_efficientnet", "timm/test_vit", "torchvision/mobilenet_v2", "torchvision/resnet18")


def outcome(name: str, recompute: bool):
    """Output, gradients, and how many bytes of activations were kept, of a pass with random masks."""
    torch.manual_seed(0)
    built = build_model(name, 5, 64 if name.startswith("torchvision") else None)
    module = built.module.train()
    if recompute:
        recompute_blocks(module, name)
    images, kept = torch.rand(2, 3, *built.processor.preprocess.size), []
    weights = {id(parameter) for parameter in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(0 if id(tensor) in weights else tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        torch.manual_seed(1)
        output = module(images)
        kept_bytes = sum(kept)
        output.square().sum().backward()
    return output, {n: p.grad for n, p in module.named_parameters()}, kept_bytes


@pytest.mark.parametrize("name", MODELS)
def test_less_is_kept_and_gradients_are_the_same(name: str) -> None:
    output, gradients, kept = outcome(name, recompute=False)
    again, same, fewer = outcome(name, recompute=True)
    assert torch.equal(output, again) and gradients.keys() == same.keys()
    assert all(torch.equal(gradients[each], same[each]) for each in gradients)
    assert 0 < fewer < kept / 2


def test_a_network_without_blocks() -> None:
    with pytest.raises(UserError, match="mine is no sequence of blocks"):
        recompute_blocks(nets.plain(), "mine")


@pytest.mark.parametrize("model", ["timm/test_efficientnet", *slowly("torchvision/mobilenet_v2")])
def test_a_run_has_the_same_bits(shapes, tmp_path, model) -> None:
    """On two processes, in micro-batches, with frozen parts and dropout; and batch norm counts no batch twice."""
    for name, value in (("off", "false"), ("on", "true")):
        more = ("--batch-size", 10, "--micro-batch", 3, "--freeze", "stages:1", "--set", f"compute.recompute={value}")
        train_on(2, shapes, tmp_path / name, "--model", model, "--image-size", 64, "--max-steps", 2, *more)
    assert curve(tmp_path / "on") == curve(tmp_path / "off")
    for file in ("best/model.safetensors", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "on" / file).read_bytes() == (tmp_path / "off" / file).read_bytes()
