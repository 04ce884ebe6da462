"""Clipping and penalties on one process."""

import pytest
import torch
from torch import nn

from ddp_ft.config.loading import make_config
from ddp_ft.training.gradients import Penalties, anchors_of, clip


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


HEAD = {"3.weight", "3.bias"}


def with_gradients(scale=1.0, seed=1):
    module = net()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return module, list(module.parameters())


def clip_config(**keys):
    return make_config({"train.clip_norm": 0, **{f"train.clip_{name}": value for name, value in keys.items()}}).train


def gradients(parameters):
    return [p.grad.clone() for p in parameters]


def norm(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_everything_off_changes_nothing_and_still_tells_the_norm():
    _, parameters = with_gradients()
    before = gradients(parameters)
    assert float(clip(parameters, clip_config())) == pytest.approx(norm(before))
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True))


def test_norm_bounds_the_norm_and_keeps_the_direction():
    _, parameters = with_gradients()
    before = gradients(parameters)
    told = clip(parameters, clip_config(norm=0.5))
    assert told.ndim == 0
    assert float(told) == pytest.approx(norm(before))
    assert norm(gradients(parameters)) == pytest.approx(0.5, rel=1e-4)
    for now, old in zip(gradients(parameters), before, strict=True):
        torch.testing.assert_close(now, old * (0.5 / norm(before)))


def test_a_small_gradient_is_left_alone():
    _, parameters = with_gradients(scale=1e-6)
    before = gradients(parameters)
    clip(parameters, clip_config(norm=1.0, value=1.0, agc=0.1))
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True))


def test_value_bounds_each_value():
    _, parameters = with_gradients()
    before = gradients(parameters)
    assert float(clip(parameters, clip_config(value=0.3))) == pytest.approx(norm(before))
    for now, old in zip(gradients(parameters), before, strict=True):
        assert torch.equal(now, old.clamp(-0.3, 0.3))


def test_agc_bounds_each_unit_by_its_weights_but_not_the_head():
    """arXiv 2102.06171, equation 3: per output channel, with norms of at least 1e-3."""
    module, parameters = with_gradients()
    before = dict(zip([name for name, _ in module.named_parameters()], gradients(parameters), strict=True))
    clip(parameters, clip_config(agc=0.05), head=[p for name, p in module.named_parameters() if name in HEAD])
    for channel in range(3):
        weight, old = module[0].weight[channel].detach(), before["0.weight"][channel]
        bound = 0.05 * max(float(weight.norm()), 1e-3)
        assert float(old.norm()) > bound
        torch.testing.assert_close(module[0].weight.grad[channel], old * (bound / float(old.norm())))
    assert torch.equal(module[3].weight.grad, before["3.weight"])
    assert torch.equal(module[3].bias.grad, before["3.bias"])
    assert norm([module[1].bias.grad]) == pytest.approx(0.05 * 1e-3)  # a bias of 0


def test_the_order_is_agc_then_value_then_norm():
    _, parameters = with_gradients()
    _, expected = with_gradients()
    for step in ({"agc": 0.5}, {"value": 0.2}, {"norm": 0.3}):
        clip(expected, clip_config(**step))
    clip(parameters, clip_config(agc=0.5, value=0.2, norm=0.3))
    for one, other in zip(parameters, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)
    assert norm(gradients(parameters)) == pytest.approx(0.3, rel=1e-4)


def test_parameters_without_a_gradient_are_passed_over():
    _, parameters = with_gradients()
    parameters[0].grad = None
    assert float(clip(parameters, clip_config(agc=0.1, value=0.1, norm=0.1))) > 0
    assert parameters[0].grad is None


def move(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)


def strengths(l1, l2_sp):
    return make_config({"optim.l1": l1, "optim.l2_sp": l2_sp}).optim


def penalised(l1=0.0, l2_sp=0.0, exempt=()):
    """Gradients of a moved net before and after, its weights, and where they began."""
    module, parameters = with_gradients()
    anchors = anchors_of(module, HEAD)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    move(module)
    before = dict(zip(start, gradients(parameters), strict=True))
    module.no_weight_decay = lambda: exempt
    Penalties(module, HEAD, strengths(l1, l2_sp), anchors).add_to_gradients()
    after = {name: parameter.grad for name, parameter in module.named_parameters()}
    return before, after, {name: p.detach() for name, p in module.named_parameters()}, start


def test_l1_pulls_weights_towards_0_by_a_constant():
    before, after, weights, _ = penalised(l1=0.02)
    for name in before:
        pull = 0.02 * weights[name].sign() if name in ("0.weight", "3.weight") else 0
        torch.testing.assert_close(after[name], before[name] + pull)


def test_l2_sp_pulls_towards_the_start_and_the_head_towards_0():
    before, after, weights, start = penalised(l2_sp=0.5)
    pulls = {"0.weight": 0.5 * (weights["0.weight"] - start["0.weight"]), "3.weight": 0.5 * weights["3.weight"]}
    for name in before:
        torch.testing.assert_close(after[name], before[name] + pulls.get(name, 0))


def test_both_penalties_add_up():
    before, after, weights, start = penalised(l1=0.02, l2_sp=0.5)
    pull = 0.02 * weights["0.weight"].sign() + 0.5 * (weights["0.weight"] - start["0.weight"])
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + pull)


def test_what_is_exempt_is_left_alone():
    before, after, *_ = penalised(l1=0.02, l2_sp=0.5, exempt={"0.weight"})
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


def test_nothing_is_added_where_nothing_is_asked_for():
    before, after, *_ = penalised()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_start_itself_is_not_pulled_at():
    module, parameters = with_gradients()
    before = gradients(parameters)
    Penalties(module, HEAD, strengths(0.0, 0.3), anchors_of(module, HEAD)).add_to_gradients()
    assert torch.equal(module[0].weight.grad, before[0])


def test_frozen_weights_get_no_gradient_and_later_stages_have_their_anchors():
    module = net()
    module[0].requires_grad_(False)
    anchors = anchors_of(module, HEAD)
    start = module[0].weight.clone()
    penalties = Penalties(module, HEAD, strengths(0.1, 0.1), anchors)
    penalties.add_to_gradients()
    assert all(parameter.grad is None for parameter in module.parameters())
    move(module)
    module[0].requires_grad_(True)
    module[0].weight.grad = torch.zeros_like(module[0].weight)
    penalties.add_to_gradients()
    weight = module[0].weight.detach()
    torch.testing.assert_close(module[0].weight.grad, 0.1 * weight.sign() + 0.1 * (weight - start))
