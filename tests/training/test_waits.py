"""Steps on a GPU wait for nothing: all that they find out is read later, when it has long arrived."""

import pytest
import torch

from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World
from ddp_ft.training.ema import Ema
from ddp_ft.training.progress import LossWindow
from tests.support import nets
from tests.training.test_step import make_learner, micro_batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_device(optimizer, precision):
    world = World(0, 1, 0, torch.device("cuda", 0))
    module, learner = make_learner(world, nets.with_batch_norm, 1.0, optimizer, precision)
    sampler = GlobalOrderSampler(40, 8, 1, 0, seed=3)
    agreement, ema = Agreement(world, StopRequest([], looks=False)), Ema(module, 0.9)
    window = LossWindow(torch.zeros(2, device=world.device))
    steps = [[pinned(batch) for batch in micro_batches(sampler.share(step), 4)] for step in range(6)]
    for number, batches in enumerate(steps):
        # The first steps make the optimizer's state and choose kernels.
        torch.cuda.set_sync_debug_mode("default" if number < 2 else "error")
        try:
            sums = learner.step(batches, agreement.flags(save=False, failed_writes=0, damage=False))
            ema.update(module, sums.is_bad)
            window.add(sums.loss, sums.weight, sums.is_bad)
            agreement.decide(number, sums.numbers())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert ema.count == 6 and window.mean() > 0


def pinned(batch):
    return {name: tensor.pin_memory() for name, tensor in batch.items()}
