"""Micro-batches in memory, cut anew: what a loader with the smaller micro-batch gives."""

from dataclasses import replace

import pytest
import torch

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.mixup import Mixing
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.loader import TrainLoader
from ddp_ft.data.micro_batches import Recut, cut_share, uneven_passes
from ddp_ft.data.sampler import GlobalOrderSampler
from tests.support.loading import train_loader
from tests.training.test_mixing import NoiseSource

STEPS = 5
PREPROCESS = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)


def loader(micro_batch: int | None, mixing: Mixing | None) -> TrainLoader:
    sampler = GlobalOrderSampler(len(NoiseSource()), 11, 1, 0, seed=1, pairs=mixing is not None)
    return train_loader(
        NoiseSource(), train_transform(PREPROCESS, AugmentConfig()), sampler, micro_batch, 0, 0, STEPS, mixing=mixing
    )


def assert_equal(share, wanted) -> None:
    assert len(share) == len(wanted)
    for batch, other in zip(share, wanted, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("mixing", [None, Mixing(mixup=0.4, cutmix=1.0)])
@pytest.mark.parametrize(("before", "after"), [(None, 4), (8, 4), (6, 2), (6, 4), (10, 4)])
def test_as_a_loader_with_that_micro_batch(mixing: Mixing | None, before: int | None, after: int) -> None:
    """Also where the old places are none of the new ones, and where samples are partners by their places."""
    recut, wanted = Recut(iter(loader(before, mixing)), keeps=2), list(loader(after, mixing))
    next(recut), next(recut)
    recut.back(2, after)
    for step in range(STEPS):
        assert_equal(next(recut), wanted[step])
    recut.back(1, 2)
    assert_equal(next(recut), list(loader(2, mixing))[-1])


@pytest.mark.parametrize(("before", "after"), [(None, 5), (5, 5), (5, 2), (10, 2), (4, 1)])
def test_no_sample_is_alone_where_the_model_takes_two(before: int | None, after: int) -> None:
    """11 samples as 5 + 6 and as 2 + 2 + 2 + 2 + 3."""
    finer = replace(loader(after, None), least=2)
    recut, wanted = Recut(iter(replace(loader(before, None), least=2)), keeps=2, least=2), list(finer)
    next(recut), next(recut)
    recut.back(2, after)
    for step in range(STEPS):
        assert_equal(next(recut), wanted[step])
        assert 1 not in [len(batch["index"]) for batch in wanted[step]]
    assert [len(places) for places in cut_share(17, 8, pairs=False, least=2)] == [8, 9]
    assert [len(places) for places in cut_share(17, 8, pairs=False)] == [8, 8, 1]
    assert [len(places) for places in cut_share(1, 8, pairs=False, least=2)] == [1]


@pytest.mark.parametrize("pairs", [False, True])
def test_the_largest_share(pairs: bool) -> None:
    for samples in range(1, 14):
        for batch_size in range(1, 9):
            for world_size in (1, 2, 3, 4):
                sizes, ranks = (samples, batch_size, world_size), range(world_size)
                samplers = [GlobalOrderSampler(*sizes, rank, 0, pairs=pairs) for rank in ranks]
                most = max(sampler.share_length(step) for sampler in samplers for step in range(20))
                assert all(sampler.largest_share == most for sampler in samplers)


@pytest.mark.parametrize(
    ("samples", "batch", "micro_batch", "uneven"),
    [
        (34, 17, 8, (2, 1)),
        (34, 17, 9, None),
        (34, 17, None, None),
        (32, 16, 4, None),
        (33, 16, 5, (2, 1)),
        (4, 3, 1, None),
    ],
)
def test_passes_that_another_rank_does_not_have(samples, batch, micro_batch, uneven):
    """On two ranks: 17 are 9 and 8. An epoch's steps differ by one: 33 are three steps of 11, 6 and 5 each."""
    first, last = (GlobalOrderSampler(samples, batch, 2, rank, seed=0) for rank in range(2))
    assert uneven_passes(first, last, micro_batch) == uneven
