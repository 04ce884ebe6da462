"""The moving average on several processes: equal weights everywhere, each rank its own batch statistics."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from ddp_ft.distributed.ddp import KEEP_BUFFERS
from ddp_ft.models.batch_norm import averaged_statistics, batch_statistics
from ddp_ft.training.ema import Ema
from tests.support import nets
from tests.support.ranks import run_ranks

BATCH = 6  # images of each step, over all ranks


def train_some(world, net, steps):
    torch.manual_seed(0)
    module = net()
    replica = DistributedDataParallel(module, **KEEP_BUFFERS) if world.size > 1 else module
    optimizer, ema = torch.optim.SGD(module.parameters(), lr=0.1), Ema(module, 0.9)
    share, target = BATCH // world.size, torch.arange(BATCH) % 3
    mine = slice(world.rank * share, (world.rank + 1) * share)
    for step in range(steps):
        images = nets.images(BATCH, seed=step).float() / 255
        loss = torch.nn.functional.cross_entropy(replica(images[mine]), target[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(module)
    return module, ema


def averages(world):
    return train_some(world, nets.plain, 5)[1].tensors


def test_the_average_is_the_same_on_any_number_of_processes():
    [expected] = run_ranks(1, averages)
    assert not torch.equal(expected["0.weight"], train_some(_Alone, nets.plain, 0)[1].tensors["0.weight"])
    for world_size in (2, 3):
        outcomes = run_ranks(world_size, averages)
        for found in outcomes:
            assert all(torch.equal(found[name], outcomes[0][name]) for name in found), "ranks differ"
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


class _Alone:
    rank, size = 0, 1


def statistics(world):
    """A rank's own averages; what an evaluation sees; and whether both the model and the averages are back."""
    module, ema = train_some(world, nets.with_batch_norm, 4)
    names = list(batch_statistics(module))
    own = {name: ema.tensors[name].clone() for name in names}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with ema.swapped(module), averaged_statistics(module, world):
        seen = {name: tensor.clone() for name, tensor in batch_statistics(module).items()}
    back = all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    return own, seen, back and all(torch.equal(ema.tensors[name], own[name]) for name in names)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_sees_the_mean_of_all_ranks_statistics(world_size):
    outcomes = run_ranks(world_size, statistics)
    for name in outcomes[0][0]:
        expected = torch.stack([own[name] for own, _, _ in outcomes]).mean(dim=0)
        for _, seen, back in outcomes:
            torch.testing.assert_close(seen[name], expected)
            assert back
    if world_size > 1:
        assert not torch.equal(outcomes[0][0]["1.running_mean"], outcomes[1][0]["1.running_mean"])
