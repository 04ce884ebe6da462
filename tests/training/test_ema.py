"""The moving average of the weights: its numbers, and that the model comes back as it was."""

import pytest
import torch
from torch import nn

from ddp_ft.errors import UserError
from ddp_ft.training.ema import Ema, decay_at
from tests.support import nets


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def shake(module, seed):
    """Other weights and statistics, as a training step would leave them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.train()(torch.randn(4, 3, 16, 16))


def decay(update, most):
    return float(decay_at(torch.tensor(float(update)), most))


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_decay_grows_to_what_is_asked():
    assert decay(1, 0.999) == pytest.approx(2 / 11)
    assert decay(10, 0.999) == pytest.approx(11 / 20)
    assert decay(10, 0.5) == 0.5
    assert decay(10**6, 0.999) == pytest.approx(0.999)


@pytest.mark.parametrize("most", [0.3, 0.9999])
def test_it_is_the_average_computed_by_hand(most):
    module = nets.with_batch_norm()
    ema, expected = Ema(module, most), {n: t.double() for n, t in module.state_dict().items()}
    for update in range(1, 8):
        shake(module, update)
        ema.update(module)
        rate = min(most, (1 + update) / (10 + update))
        for name, tensor in module.state_dict().items():
            expected[name] = rate * expected[name] + (1 - rate) * tensor.double()
    assert ema.count == 7
    for name, tensor in ema.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert {"1.running_mean", "1.running_var", "9.weight"} <= ema.tensors.keys()
    assert not torch.equal(ema.tensors["1.running_var"], module.state_dict()["1.running_var"])
    assert int(ema.tensors["1.num_batches_tracked"]) == 7


def test_the_module_comes_back_bit_for_bit_in_the_same_tensors():
    module = nets.with_batch_norm()
    ema = Ema(module, 0.9)
    shake(module, 1)
    module[0].weight.data[0, 0, 0, 0] = float("nan")
    places, before = [p.data_ptr() for p in module.parameters()], snapshot(module)
    averages = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    with pytest.raises(ZeroDivisionError), ema.swapped(module):
        assert_same_bits(module.state_dict(), averages)
        shake(module, 2)  # what happens inside is undone too
        raise ZeroDivisionError
    after = module.state_dict()
    assert all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in before if before[n].ndim)
    assert [p.data_ptr() for p in module.parameters()] == places
    assert_same_bits(ema.tensors, averages)


def test_channels_last_and_tied_weights():
    module = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(4, 4), nn.Linear(4, 4))
    module[2].weight = module[1].weight
    ema, before = Ema(module, 0.5), snapshot(module)
    with torch.no_grad():
        module[1].weight.mul_(3)
    ema.update(module)
    torch.testing.assert_close(
        ema.tensors["2.weight"], before["2.weight"] * (3 - 2 * decay(1, 0.5)), rtol=1e-5, atol=1e-6
    )
    with ema.swapped(module):
        assert torch.equal(module[1].weight, ema.tensors["1.weight"])
    assert torch.equal(module[2].weight, 3 * before["2.weight"])


def test_it_continues_from_what_was_stored():
    module = nets.with_batch_norm()
    whole = Ema(module, 0.9)
    shake(module, 1)
    whole.update(module)
    cut = Ema(nets.with_batch_norm(), 0.9)
    cut.load(whole.count, {name: tensor.clone() for name, tensor in whole.tensors.items()})
    shake(module, 2)
    whole.update(module)
    cut.update(module)
    assert cut.count == whole.count == 2
    assert_same_bits(cut.tensors, whole.tensors)


def test_a_bad_step_changes_nothing():
    module = nets.with_batch_norm()
    ema = Ema(module, 0.9)
    before = snapshot(module)
    shake(module, 1)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.zero_()  # as after a step that was undone
    ema.update(module, torch.tensor(True))
    assert ema.count == 0
    assert_same_bits(ema.tensors, before)
    ema.update(module, torch.tensor(False))
    assert ema.count == 1 and not torch.equal(ema.tensors["0.weight"], before["0.weight"])


def test_reset_begins_anew():
    module = nets.plain()
    ema = Ema(module, 0.9)
    shake(module, 1)
    ema.update(module)
    ema.reset(module)
    assert ema.count == 0
    assert_same_bits(ema.tensors, module.state_dict())


def test_the_average_of_another_model_is_refused():
    with pytest.raises(UserError, match="another model: 1"):
        Ema(nets.plain(), 0.9).load(0, Ema(nets.with_batch_norm(), 0.9).tensors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_update_does_not_wait_for_the_device():
    module = nets.with_batch_norm().cuda()
    ema = Ema(module, 0.9)
    ema.update(module)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update(module)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(ema.tensors, dict(module.state_dict()))
