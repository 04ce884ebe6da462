"""Steps on a GPU wait for nothing: all that they find out is read later, when it has long arrived."""

import sys
from dataclasses import replace

import pytest
import torch

from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World
from ddp_ft.tasks.losses import LossChoice
from ddp_ft.tasks.multi_label import MultiLabel
from ddp_ft.tasks.regression import Regression
from ddp_ft.tasks.single_label import SingleLabel
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


ONE_OF_THREE, YES_OR_NO = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("task", "target", "loss"),
    [(SingleLabel, ONE_OF_THREE, "focal"), (MultiLabel, YES_OR_NO, "bce"), (Regression, YES_OR_NO, "huber")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_step_reads_nothing_from_the_device(monkeypatch, task, target, loss):
    """On torch's device "meta", whose tensors have no values: reading one or mixing them with the CPU's is an error."""
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    world = World(0, 1, 0, torch.device("meta"))
    module, learner = make_learner(world, nets.with_batch_norm, 1.0, "adamw", smoothing=0.1)
    learner.bounds, learner.recomputes = replace(learner.bounds, clip_agc=0.1, clip_value=1.0), True
    learner.task = task(("a", "b", "c"), LossChoice(loss))
    learner.task.weights = torch.ones(3)
    ema, window = Ema(module, 0.9), LossWindow(torch.zeros(2, device=world.device))
    mixes = {
        "mix_share": torch.ones(4),
        "mix_partner": torch.arange(4),
        "mix_box": torch.zeros(4, 4, dtype=torch.int64),
    }
    batch = {"image": nets.images(4), "target": target, "weight": torch.ones(4), "index": torch.arange(4)}
    if task is not Regression:
        batch |= mixes
    sums = learner.step([batch, batch], [0.0] * 4)
    ema.update(module, sums.is_bad)
    window.add(sums.loss, sums.weight, sums.is_bad)
    assert sums.numbers().device == world.device


def pinned(batch):
    return {name: tensor.pin_memory() for name, tensor in batch.items()}
