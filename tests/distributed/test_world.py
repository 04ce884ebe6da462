"""The process group of a job."""

import torch
from torch import nn

from ddp_ft.distributed.ddp import Replica, Trainee
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.world import connect
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
