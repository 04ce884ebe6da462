"""Mixed images and targets through the real loader and a real backward pass, on any split of the batch."""

import pytest
import torch
from torch import nn

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import Batch
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.models.libraries.base import call_with_images
from tests.support import nets
from tests.support.loading import train_loader
from tests.support.ranks import run_ranks

PREPROCESS = Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
SAMPLES, BATCH, STEPS = 13, 7, 4  # two steps an epoch, of 6 and 7 samples


class NoiseSource:
    """Noise of three classes."""

    def __init__(self) -> None:
        self.pixels = nets.images(SAMPLES, side=20)

    def __len__(self) -> int:
        return SAMPLES

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Batch:
        return {"image": self.pixels[index], "target": torch.tensor(index % 3)}


def summed_loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy against the mixed targets."""
    one_hot, share = torch.eye(3)[batch["target"]], batch["mix_share"].unsqueeze(1)
    target = share * one_hot + (1 - share) * one_hot[batch["mix_partner"]]
    losses = -(target * outputs.log_softmax(1)).sum(1)
    return (losses * batch["weight"]).sum()


def gradients(world: World, mixing: Mixing, micro_batch: int | None) -> list[tuple[float, list[torch.Tensor]]]:
    """Loss and gradient of each step's global batch."""
    torch.manual_seed(0)
    module = nets.plain()
    replica = replicate(Trainee(module, call_with_images), world, distributed=world.store is not None)
    sampler = GlobalOrderSampler(SAMPLES, BATCH, world.size, world.rank, seed=1, pairs=True)
    transform = train_transform(PREPROCESS, AugmentConfig())
    loader = train_loader(NoiseSource(), transform, sampler, micro_batch, 0, 0, STEPS, mixing=mixing)
    prepare, steps = DeviceTransform(PREPROCESS, world.device, channels_last=False), []
    for step, micro_batches in enumerate(loader):
        total = sum(backward(replica, prepare(batch), is_last=batch is micro_batches[-1]) for batch in micro_batches)
        scale = 1 / sampler.batch_length(step)
        steps.append((float(world.sum(total)), [scale * parameter.grad for parameter in module.parameters()]))
        module.zero_grad(set_to_none=False)
    return steps


def backward(replica: nn.Module, batch: Batch, is_last: bool) -> torch.Tensor:
    if isinstance(replica, nn.parallel.DistributedDataParallel):
        replica.require_backward_grad_sync = is_last
    loss = summed_loss(replica(batch), batch)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_of_mixed_batches_are_the_same_on_any_split(world_size: int) -> None:
    for mixing, micro_batch in ((Mixing(mixup=0.4, cutmix=1.0), None), (Mixing(mixup=1.0), 2)):
        expected = gradients(World(0, 1, 0, torch.device("cpu")), mixing, None)
        for outcome in run_ranks(world_size, gradients, mixing, micro_batch):
            for (loss, tensors), (wanted_loss, wanted) in zip(outcome, expected, strict=True):
                assert loss == pytest.approx(wanted_loss, rel=1e-5)
                for tensor, reference in zip(tensors, wanted, strict=True):
                    torch.testing.assert_close(tensor, reference, rtol=0, atol=1e-6)


def test_mixing_decides_the_gradient() -> None:
    alone = World(0, 1, 0, torch.device("cpu"))
    losses = {mixing: gradients(alone, mixing, None)[0][0] for mixing in (Mixing(mixup=1.0), Mixing(cutmix=1.0))}
    assert len(set(losses.values())) == 2
