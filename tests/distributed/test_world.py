"""The process group of a job, and its collectives."""

import socket

import pytest
import torch
from torch import nn

from ddp_ft.distributed.ddp import Replica, Trainee
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.world import await_name, connect
from ddp_ft.errors import UserError
from tests.support.ranks import run_ranks


def gradient_in_a_group_that_is_debugged():
    from torch.distributed import DebugLevel, set_debug_level

    set_debug_level(DebugLevel.DETAIL)  # as TORCH_DISTRIBUTED_DEBUG does when torch is imported
    net = nn.Linear(2, 1)
    with connect(read_launch(), torch.device("cpu"), timeout_minutes=1):
        replica = Replica(Trainee(net, lambda module, batch: module(batch["x"])))
        replica.sums.begin()
        replica({"x": torch.ones(3, 2)}).sum().backward()
    return net.weight.grad.tolist()


def test_the_most_detailed_debugging_of_torch_does_not_crash_ddp():
    assert run_ranks(2, gradient_in_a_group_that_is_debugged, connected=False) == [[[6.0, 6.0]]] * 2


def of_rank_0(world):
    """A module's tensors after the copy, and what lies in memory behind one of them."""
    memory = 10 * world.rank + torch.arange(9.0)
    module = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    for parameter in module.parameters():
        nn.init.constant_(parameter, float(world.rank + 1))
    module.register_buffer("scalar", torch.tensor(world.rank))
    module.register_buffer("transposed", memory[3:].view(2, 3).t())
    module.register_buffer("expanded", memory[:2].expand(4, 2))
    world.broadcast_module(module)
    found = module.scalar, module.transposed, module.expanded[3]
    return [module[0].weight.unique().tolist(), *(tensor.tolist() for tensor in found)], float(memory[2])


def test_tensors_of_any_layout_are_copied():
    [expected, _], [found, behind] = run_ranks(2, of_rank_0)
    assert found == expected == [[1.0], 0, [[3.0, 6.0], [4.0, 7.0], [5.0, 8.0]], [0.0, 1.0]]
    assert behind == 12.0


def test_a_port_that_another_program_has_is_one_message(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in places.items():
            monkeypatch.setenv(name, value)
        ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1")
        launch = read_launch({**ranks, **places})
        with pytest.raises(UserError, match=r"cannot meet others at 127\.0\.0\.1.*in use"):
            connect(launch, torch.device("cpu"), 1).__enter__()


def test_an_unknown_host_is_one_message():
    await_name("127.0.0.1", 0)
    with pytest.raises(UserError, match=r"MASTER_ADDR=nobody\.invalid"):
        await_name("nobody.invalid", 0)
