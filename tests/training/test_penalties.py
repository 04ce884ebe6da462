"""Penalties under DistributedDataParallel: once per step, whatever the number of processes and micro-batches."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_ft.config.loading import make_config
from ddp_ft.distributed.world import World
from ddp_ft.training.gradients import Penalties, anchors_of, clip
from tests.support import nets
from tests.support.ranks import run_ranks

HEAD = {"6.weight", "6.bias"}
L1, L2_SP, RATE = 0.003, 0.05, 0.5
PIXELS = nets.images(7).float() / 255
TARGETS = torch.arange(7) % 3


def summed_loss(module, rows):
    return nn.functional.cross_entropy(module(PIXELS[rows]), TARGETS[rows], reduction="sum")


def train(world, steps, clipping):
    """Weights, and the last gradient, after steps over 7 samples that are dealt to the ranks one by one."""
    torch.manual_seed(0)
    module = nets.plain()
    anchors = anchors_of(module, HEAD)
    replica = DistributedDataParallel(module, gradient_as_bucket_view=True) if world.store is not None else module
    penalties = Penalties(module, HEAD, make_config({"optim.l1": L1, "optim.l2_sp": L2_SP}).optim, anchors)
    parameters = list(module.parameters())
    for _ in range(steps):
        module.zero_grad(set_to_none=True)
        summed_loss(replica, range(world.rank, 7, world.size)).backward()
        torch._foreach_mul_([p.grad for p in parameters], world.size / 7)
        penalties.add_to_gradients()
        clip(parameters, make_config({"train.clip_norm": 0, **clipping}).train, [module[6].weight, module[6].bias])
        with torch.no_grad():
            for parameter in parameters:
                parameter -= RATE * parameter.grad
    return {name: p.detach().clone() for name, p in module.named_parameters()}, [p.grad.clone() for p in parameters]


def by_autograd(steps):
    """The same from the penalties themselves: the gradient of mean loss + l1 |w| + l2_sp / 2 |w - w0|^2."""
    torch.manual_seed(0)
    module = nets.plain()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    for _ in range(steps):
        loss = summed_loss(module, range(7)) / 7
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                origin = torch.zeros_like(parameter) if name in HEAD else start[name]
                loss = loss + L1 * parameter.abs().sum() + L2_SP / 2 * (parameter - origin).square().sum()
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(module.parameters(), grads, strict=True):
                parameter -= RATE * grad
    return {name: p.detach().clone() for name, p in module.named_parameters()}


CLIPPING = [{}, {"train.clip_norm": 0.05}, {"train.clip_value": 0.02}, {"train.clip_agc": 0.05}]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_penalties_count_once_on_any_number_of_processes(world_size):
    expected = by_autograd(4)
    for weights, _ in run_ranks(world_size, train, 4, {}):
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("clipping", CLIPPING, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_to_the_bit_and_with_one_process(world_size, clipping):
    alone, _ = train(World(0, 1, 0, torch.device("cpu")), 3, clipping)
    unclipped, _ = train(World(0, 1, 0, torch.device("cpu")), 3, {})
    assert not clipping or not torch.equal(alone["0.weight"], unclipped["0.weight"])
    outcomes = run_ranks(world_size, train, 3, clipping)
    for weights, grads in outcomes:
        assert all(torch.equal(weights[name], outcomes[0][0][name]) for name in weights)
        assert all(torch.equal(one, other) for one, other in zip(grads, outcomes[0][1], strict=True))
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-5)
