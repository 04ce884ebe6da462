"""A forward pass before anything is trained: what it finds, and that it leaves no trace."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError
from ddp_ft.models.introspection import Trial
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.models.rehearsal import Rehearsal, rehearse
from tests.support import nets

TRIAL = Trial(ImageProcessor(Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)), call_with_images)
SPARE = frozenset({"spare.weight", "spare.bias"})


def rehearsed(module: nn.Module, may_differ: bool = False) -> Rehearsal:
    return rehearse(module, TRIAL, "own.py:make", True, may_differ)


class Own(nn.Module):
    """A network that computes `outputs(self, pooled)`; it also has a layer `spare`, and counts its passes."""

    def __init__(self, outputs: Callable[["Own", Tensor], Any]) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head, self.spare = nn.Linear(4, 3), nn.Linear(3, 3)
        self.outputs, self.passes = outputs, 0

    def forward(self, values: Tensor) -> Any:
        self.passes += 1
        return self.outputs(self, self.norm(self.body(values)).mean((2, 3)))


def test_parameters_that_get_no_gradient() -> None:
    assert rehearsed(nets.plain()) == Rehearsal()
    assert rehearsed(nets.with_an_unused_layer()).unused == SPARE
    only_in_training = Own(lambda net, seen: net.spare(net.head(seen)) if net.training else net.head(seen))
    assert rehearsed(only_in_training).unused == frozenset()
    assert rehearsed(only_in_training.eval()).unused == SPARE
    frozen = Own(lambda net, seen: net.head(seen))
    frozen.spare.requires_grad_(False)
    assert rehearsed(frozen).unused == frozenset()


@pytest.mark.parametrize(
    ("outputs", "what"),
    [
        (lambda net, seen: net.head(seen).softmax(1), "softmax"),
        (lambda net, seen: torch.sigmoid(net.head(seen)[:, None]).double().squeeze(1), "sigmoid"),
        (lambda net, seen: net.head(seen.softmax(1)), ""),
        (lambda net, seen: net.head(seen).log_softmax(1), ""),
    ],
)
def test_outputs_that_are_probabilities(outputs: Callable[[Own, Tensor], Any], what: str) -> None:
    assert rehearsed(Own(outputs)).ends_in == what


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_network_uses_its_parameters() -> None:
    whole = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    scripted = torch.jit.script(whole)
    assert rehearsed(scripted) == Rehearsal()
    assert scripted(torch.zeros(1, 3, 8, 8)).shape == (1, 2), "it is as it was"


def test_a_reentrant_checkpoint_hides_nothing() -> None:
    from torch.utils.checkpoint import checkpoint

    assert rehearsed(Own(lambda net, seen: checkpoint(net.head, seen, use_reentrant=True))).unused == SPARE


def looks_at_values(net: Own, seen: Tensor) -> Tensor:
    """Cannot run on the meta device; draws from all generators."""
    random.random(), np.random.random()
    assert bool((torch.rand(1) < seen.abs() + 2).all())
    outputs: Tensor = net.head(seen)
    return outputs


@pytest.mark.parametrize("outputs", [lambda net, seen: net.head(seen), looks_at_values])
def test_it_leaves_no_trace(outputs: Callable[[Own, Tensor], Tensor]) -> None:
    net = Own(outputs)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert rehearsed(net) == Rehearsal(SPARE)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in net.state_dict().values())
    assert net.passes == 0 and all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_batch_norm_with_one_value_of_each_channel_takes_two_samples() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 3))
    assert rehearsed(net).least == 2
    net[2].eval()  # as frozen parts are
    assert rehearsed(net).least == 1
    assert rehearsed(nets.with_batch_norm()).least == 1  # it has several values of each


def test_networks_that_cannot_be_trained() -> None:
    with pytest.raises(UserError, match=r"own.py:make fails on noise, in training mode: ZeroDivisionError"):
        rehearsed(Own(lambda net, seen: net.head(seen) / (1 // (1 - int(net.training)))))
    assert rehearsed(Own(lambda net, seen: net.head(seen).cuda_only()), may_differ=True) == Rehearsal()
    with pytest.raises(UserError, match="fails on noise") as caught:
        rehearsed(Own(lambda net, seen: net.head(seen)).double())
    assert "parameters are float64" in caught.value.hint
    with pytest.raises(UserError, match="do not depend on any parameter"):
        rehearsed(Own(lambda net, seen: net.head(seen).detach()))
