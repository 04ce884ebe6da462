"""One optimizer step on any split of the global batch."""

import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.models.batch_norm import averaged_statistics, batch_statistics
from ddp_ft.models.freezing import TrainingMode
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.tasks.single_label import SingleLabel
from ddp_ft.training.gradients import Penalties
from ddp_ft.training.learners import DataLearner
from ddp_ft.training.optim import make_optimizer, param_groups
from ddp_ft.training.state import make_scaler
from tests.support import nets
from tests.support.ranks import run_ranks

TARGETS = torch.arange(40) % 3
PREPROCESS = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)


def make_learner(world, net=nets.plain, clip_norm=0.0, optimizer="sgd", precision="fp32", smoothing=0.0):
    torch.manual_seed(0)
    module = net().to(world.device)
    task = SingleLabel(("a", "b", "c"))
    task.label_smoothing = smoothing
    settings = {"optim.name": optimizer, "optim.lr": 0.1, "optim.momentum": 0.9, "optim.weight_decay": 0}
    settings["train.clip_norm"] = clip_norm
    config, train = make_config(settings).optim, make_config(settings).train
    groups = make_optimizer(param_groups(module, {"6.weight", "6.bias"}, config), config)
    return module, DataLearner(
        replica=replicate(Trainee(module, call_with_images), world, distributed=world.store is not None),
        task=task,
        optimizer=groups,
        scaler=make_scaler(world.device, precision),
        world=world,
        precision=precision,
        bounds=train,
        penalties=Penalties(module, {"6.weight", "6.bias"}, config),
        to_device=DeviceTransform(PREPROCESS, world.device, channels_last=False),
        mode=TrainingMode(module, "train"),
    )


def micro_batches(addresses, micro_batch):
    pixels = nets.images(len(TARGETS))
    for cut in range(0, len(addresses), micro_batch or len(addresses)):
        part = addresses[cut : cut + (micro_batch or len(addresses))]
        index = torch.tensor([address.index for address in part])
        weight = torch.tensor([0.0 if address.ghost else 1.0 for address in part])
        yield {"image": pixels[index], "target": TARGETS[index], "weight": weight, "index": index}


def train_some(world, steps, batch, micro_batch, samples=40, **options):
    """Weights, loss means and gradient norms after some steps."""
    module, learner = make_learner(world, **options)
    sampler = GlobalOrderSampler(samples, batch, world.size, world.rank, seed=3)
    rows = []
    for step in range(steps):
        sums = learner.step(list(micro_batches(sampler.share(step), micro_batch)))
        rows.append((float(sums.loss), float(sums.weight), float(sums.grad_norm)))
    return {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}, rows


def alone(*args, **options):
    return train_some(World(0, 1, 0, torch.device("cpu")), *args, **options)


def assert_close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def work(world, options, *args):
    return train_some(world, *args, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_one_sgd_step_is_the_same_on_any_split(world_size, micro_batch):
    """8 samples as 1 x 8, 2 x 4 and 3 x (3, 3, 2), whole or in micro-batches of 2."""
    expected, rows = alone(1, 8, None, clip_norm=0.5)
    for weights, rank_rows in run_ranks(world_size, work, {"clip_norm": 0.5}, 1, 8, micro_batch):
        assert_close(weights, expected)
        assert rank_rows[0] == pytest.approx(rows[0], rel=1e-5)
        assert rank_rows[0][1] == 8.0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_many_steps_stay_together_with_an_empty_share(world_size):
    """5 samples in batches of 4 leave the third of 3 ranks without a sample now and then."""
    options = {"clip_norm": 1.0, "optimizer": "adamw", "smoothing": 0.1, "samples": 5}
    expected, rows = alone(6, 4, None, **options)
    outcomes = run_ranks(world_size, work, options, 6, 4, None)
    for weights, rank_rows in outcomes:
        assert all(torch.equal(weights[name], outcomes[0][0][name]) for name in weights), "ranks differ"
        assert_close(weights, expected, 2e-5)
        assert [loss for loss, *_ in rank_rows] == pytest.approx([loss for loss, *_ in rows], rel=1e-4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_parameters_are_equal_on_all_ranks_with_batch_norm(world_size):
    options = {"net": nets.with_batch_norm, "optimizer": "adamw"}
    outcomes = [weights for weights, _ in run_ranks(world_size, work, options, 5, 8, 2)]
    for weights in outcomes[1:]:
        assert all(
            torch.equal(weights[name], outcomes[0][name])
            for name in weights
            if "running" not in name and "num" not in name
        )


def test_clipping_bounds_the_step():
    free, rows = alone(1, 8, None)
    clipped, _ = alone(1, 8, None, clip_norm=rows[0][2] / 10)
    start, _ = alone(0, 8, None)
    moved = sum(float((free[name] - start[name]).norm() ** 2) for name in start) ** 0.5
    held = sum(float((clipped[name] - start[name]).norm() ** 2) for name in start) ** 0.5
    assert held < 0.5 * moved


def count_passes(world, micro_batch):
    module, learner = make_learner(world)
    sizes = []
    module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    sampler = GlobalOrderSampler(40, 8, world.size, world.rank, seed=3)
    learner.step(list(micro_batches(sampler.share(0), micro_batch)))
    return sizes


def test_micro_batch_bounds_the_forward_pass():
    assert run_ranks(3, count_passes, 2) == [[2, 1], [2, 1], [2]]


def statistics_of(world):
    module, learner = make_learner(world, net=nets.with_batch_norm)
    sampler = GlobalOrderSampler(40, 8, world.size, world.rank, seed=3)
    learner.step(list(micro_batches(sampler.share(0), None)))
    own = {name: tensor.clone() for name, tensor in batch_statistics(module).items()}
    with averaged_statistics(module, world):
        mean = {name: tensor.clone() for name, tensor in batch_statistics(module).items()}
    after = batch_statistics(module)
    assert all(torch.equal(own[name], after[name]) for name in own)
    return own, mean


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batch_norm_statistics_are_averaged_for_the_block_only(world_size):
    outcomes = run_ranks(world_size, statistics_of)
    for name in outcomes[0][0]:
        expected = torch.stack([own[name] for own, _ in outcomes]).mean(dim=0)
        for _, mean in outcomes:
            torch.testing.assert_close(mean[name], expected)
    if world_size > 1:
        assert not torch.equal(outcomes[0][0]["1.running_mean"], outcomes[1][0]["1.running_mean"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nccl_with_one_process(precision):
    expected, _ = alone(2, 8, None, clip_norm=1.0)
    [(weights, rows)] = run_ranks(1, work, {"clip_norm": 1.0, "precision": precision}, 2, 8, 4, device="cuda")
    assert_close(weights, expected, 1e-4 if precision == "fp32" else 2e-2)
    assert rows[0][1] == 8.0
