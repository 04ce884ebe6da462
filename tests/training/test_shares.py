"""How few samples a process may have in a step where batch norm needs two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.sampler import GlobalOrderSampler, smallest_share
from ddp_ft.diagnostics.advice import large_batch
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.models.prepare import prepare
from ddp_ft.training.shares import check_shares, fitting_batch
from tests.support.runs import train_here
from tests.system.faults import exhausted


def with_one_value_a_channel(num_classes: int = 3) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.BatchNorm1d(4), nn.Linear(4, num_classes))


def exhausted_by_three(num_classes: int = 3) -> nn.Module:
    """The same, which runs out of memory with more than two images."""
    place = exhausted.Exhausted(2, None, forward=True)
    return nn.Sequential(place, *with_one_value_a_channel(num_classes))


def check(settings: dict[str, Any], samples: int = 40, processes: int = 1) -> None:
    config, preprocess = make_config(settings), Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
    built = BuiltModel(
        with_one_value_a_channel(),
        ImageProcessor(preprocess),
        call_with_images,
        {"library": "file"},
        frozenset({"4.weight", "4.bias"}),
    )
    built, _ = prepare(built, config, None, World(0, 1, 0, torch.device("cpu")))
    check_shares(config, replace(built, head_path="3"), samples, processes)


@pytest.mark.parametrize(
    ("settings", "samples", "processes", "remedy"),
    [
        ({"train.batch_size": 1}, 40, 1, "--batch-size 2;"),
        ({"train.batch_size": 3}, 40, 2, "--batch-size 4;"),
        ({"train.batch_size": 8}, 9, 3, "--batch-size 9;"),  # two steps, of 4 and 5
        ({"train.batch_size": 8}, 5, 3, "fewer processes"),
        ({"train.micro_batch": 1}, 40, 1, "--micro-batch 2;"),
        ({"probe.epochs": 1, "probe.batch_size": 1}, 40, 2, "--set probe.batch_size 2;"),
    ],
)
def test_refused_at_the_start(settings: dict[str, Any], samples: int, processes: int, remedy: str) -> None:
    with pytest.raises(UserError, match="needs two images") as caught:
        check(settings, samples, processes)
    assert remedy in caught.value.hint and "batch_norm=frozen" in caught.value.hint
    if "probe.epochs" not in settings:
        check({**settings, "model.batch_norm": "frozen"}, samples, processes)


def test_the_smallest_share() -> None:
    for samples, size, ranks in [(n, b, r) for n in range(1, 14) for b in range(1, 9) for r in (1, 2, 3)]:
        samplers = [GlobalOrderSampler(samples, size, ranks, rank, 0) for rank in range(ranks)]
        fewest = min(len(sampler._places(step)) for sampler in samplers for step in range(samplers[0].steps_per_epoch))
        assert smallest_share(samples, size, ranks) == fewest
        if (fits := fitting_batch(size, samples, ranks, 2)) is not None:
            assert smallest_share(samples, fits, ranks) >= 2 and fits >= size


def test_the_advice_fits() -> None:
    assert "--batch-size 8." in large_batch(32, 20).remedy
    assert "--batch-size 1." in large_batch(8, 3).remedy
    assert "--batch-size 3." in large_batch(8, 3, least=2).remedy
    assert "--batch-size 2." in large_batch(8, 3, processes=2).remedy
    assert "fewer processes" in large_batch(8, 3, processes=2, least=2).remedy


def test_out_of_memory_does_not_leave_one_alone(shapes: Path, tmp_path: Path) -> None:
    """Shares of 5 go to 2 + 3 images, which is too many again; a batch norm of one image cannot be."""
    options = ("--model", f"{__file__}:exhausted_by_three", "--batch-size", 5, "--recipe", "full")
    with pytest.raises(UserError, match=r"2 images in a forward pass; it cannot be less where batch norm"):
        train_here(shapes, tmp_path / "r", *options)


def test_synchronised_batch_norm_wants_as_many_passes_on_each_process() -> None:
    """17 images are 9 and 8 of two processes: in micro-batches of 8 one has two passes, the other one."""
    config = make_config({"train.batch_size": 17, "train.micro_batch": 8})
    preprocess = Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(with_one_value_a_channel())
    built = BuiltModel(module, ImageProcessor(preprocess), call_with_images, {"library": "file"}, frozenset())
    with pytest.raises(UserError, match="2 forward passes on one process and 1 on another"):
        check_shares(config, built, 34, 2)
    check_shares(config, built, 34, 1)
    check_shares(make_config({"train.batch_size": 17}), built, 34, 2)
