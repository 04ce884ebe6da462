"""Mixup and cutmix: what is drawn, what becomes of the images, and that no split of the batch changes either."""

import itertools
import random

import pytest
import torch

from ddp_ft.config.schema import AugmentConfig, TrainConfig
from ddp_ft.contracts import LABEL, NUMBERS, Address, Batch
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.mixup import Mixing, draw_mixes, mix_images
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.loader import TrainLoader
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.errors import UserError
from tests.data.image.image_files import NumberSource
from tests.support.loading import train_loader

PREPROCESS = Preprocess((8, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
TRANSFORM = train_transform(PREPROCESS, AugmentConfig(crop_min=0.5))
BOTH = Mixing(mixup=0.4, cutmix=1.0)


def loader(
    size: int = 20, batch: int = 8, world: int = 1, rank: int = 0, micro: int | None = None, workers: int = 0,
    mixing: Mixing | None = BOTH, seed: int = 0, source: NumberSource | None = None, total: int = 6,
) -> TrainLoader:  # fmt: skip
    sampler = GlobalOrderSampler(size, batch, world, rank, seed, pairs=mixing is not None)
    source = NumberSource(size) if source is None else source
    return train_loader(source, TRANSFORM, sampler, micro, workers, 0, total, mixing=mixing)


def addresses(count: int, epoch: int = 0, first: int = 0) -> list[Address]:
    return [Address(k, epoch, first + k) for k in range(count)]


def draws(mixing: Mixing, count: int = 4000, size: tuple[int, int] = (20, 30)) -> Batch:
    return draw_mixes(mixing, 0, addresses(count), *size)


def test_what_is_in_a_batch() -> None:
    (batch,) = next(iter(loader(size=7, batch=7)))
    assert {name: tensor.dtype for name, tensor in batch.items() if name.startswith("mix_")} == {
        "mix_share": torch.float32, "mix_partner": torch.int64, "mix_box": torch.int64
    }  # fmt: skip
    assert batch["image"].dtype == torch.uint8
    assert batch["mix_partner"].tolist() == [1, 0, 3, 2, 5, 4, 6]
    share, box = batch["mix_share"], batch["mix_box"]
    assert share[6] == 1 and (box[6] == 0).all(), "the last one of an odd number stays as it is"
    for first in (0, 2, 4):
        assert share[first] == share[first + 1] and torch.equal(box[first], box[first + 1])
    assert len(set(share[:6].tolist())) == 3, "each pair draws for itself"


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert not any(name.startswith("mix") for name in next(iter(loader(mixing=None)))[0])
    assert Mixing.of(AugmentConfig()) is None
    assert Mixing.of(AugmentConfig(mixup=0.2)) == Mixing(0.2, 0.0)
    assert Mixing.of(AugmentConfig(cutmix=0.7)) == Mixing(0.0, 0.7)


def test_shares_of_mixup_are_beta_distributed() -> None:
    for alpha in (0.2, 1.0, 5.0):
        mixed = draws(Mixing(mixup=alpha))
        share = mixed["mix_share"][::2].double()
        assert (mixed["mix_box"] == 0).all() and share.min() >= 0 and share.max() <= 1
        assert float(share.mean()) == pytest.approx(0.5, abs=0.04)
        assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # that of Beta(alpha, alpha)


def test_share_of_cutmix_is_the_area_that_is_left() -> None:
    mixed = draws(Mixing(cutmix=1.0))
    top, left, tall, wide = mixed["mix_box"].unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= 20).all() and (left + wide <= 30).all()
    torch.testing.assert_close(mixed["mix_share"], 1 - (tall * wide).float() / 600)
    # Cutting boxes off at the border makes them smaller than the uniform 1/2 that was drawn.
    assert 0.6 < float(mixed["mix_share"].mean()) < 0.75
    # The image's own shape, but for rounding, where nothing was cut off.
    inner = (top > 0) & (left > 0) & (top + tall < 20) & (left + wide < 30) & (tall > 6)
    assert inner.any() and (wide[inner].float() / tall[inner] - 1.5).abs().max() < 0.4
    narrow = draws(Mixing(cutmix=50.0))["mix_box"]
    assert narrow[:, 2:].double().std() < mixed["mix_box"][:, 2:].double().std()


def test_with_both_each_pair_gets_one_of_them() -> None:
    mixed = draws(BOTH)
    cut = (mixed["mix_box"][:, 2:].prod(1) > 0)[::2]
    empty_cuts = 0.04  # boxes whose sides round to 0
    assert 0.5 - empty_cuts - 0.03 < float(cut.double().mean()) < 0.53


@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1e4])
def test_extreme_alphas(alpha: float) -> None:
    for mixing in (Mixing(mixup=alpha), Mixing(cutmix=alpha)):
        share = draws(mixing, 400)["mix_share"]
        assert share.isfinite().all() and share.min() >= 0 and share.max() <= 1


def test_draws_follow_seed_epoch_and_position() -> None:
    def shares(seed: int, epoch: int, first: int) -> list[float]:
        return draw_mixes(Mixing(mixup=1.0), seed, addresses(4, epoch, first), 8, 8)["mix_share"].tolist()

    many = [*shares(0, 0, 0), *shares(1, 0, 0), *shares(0, 1, 0), *shares(0, 0, 4)]
    assert len(set(many)) == 8
    assert shares(0, 0, 2)[:2] == shares(0, 0, 0)[2:]
    state = random.getstate(), torch.get_rng_state()
    shares(0, 0, 0)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def mixed_one_by_one(images: torch.Tensor, mixes: Batch) -> torch.Tensor:
    results = []
    for k, image in enumerate(images):
        other = images[mixes["mix_partner"][k]]
        top, left, tall, wide = mixes["mix_box"][k].tolist()
        result = image.clone()
        if tall * wide:
            result[:, top : top + tall, left : left + wide] = other[:, top : top + tall, left : left + wide]
        else:
            result = mixes["mix_share"][k] * image + (1 - mixes["mix_share"][k]) * other
        results.append(result)
    return torch.stack(results)


@pytest.mark.parametrize("mixing", [Mixing(mixup=1.0), Mixing(cutmix=1.0), BOTH])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_are_blended_or_patched(mixing: Mixing, memory_format: torch.memory_format) -> None:
    images = torch.randn(33, 3, 8, 12).to(memory_format=memory_format)
    mixes = draw_mixes(mixing, 5, addresses(33), 8, 12)
    given = mix_images(images.clone(), mixes["mix_share"], mixes["mix_partner"], mixes["mix_box"])
    assert torch.equal(given, mixed_one_by_one(images, mixes))
    assert given.is_contiguous(memory_format=memory_format)
    assert torch.equal(given[32], images[32]) and not torch.equal(given[:32], images[:32])


def test_device_transform_mixes_what_it_has_normalised() -> None:
    (batch,) = next(iter(loader()))
    prepare = DeviceTransform(PREPROCESS, "cpu", channels_last=True)
    mixes = {name: batch.pop(name) for name in ("mix_share", "mix_partner", "mix_box")}
    before = batch["image"].clone()
    expected = mixed_one_by_one(prepare(batch)["image"], mixes)
    assert torch.equal(prepare(batch | mixes)["image"], expected)
    assert torch.equal(batch["image"], before)


def by_position(
    world: int, micro: int | None, workers: int = 0, **options: int
) -> dict[int, tuple[bytes, list[float]]]:
    """Mixed pixels and mixed target (over 7 classes) at all positions, over all ranks."""
    prepare, seen = DeviceTransform(PREPROCESS, "cpu", channels_last=True), {}
    for rank in range(world):
        for batch in itertools.chain.from_iterable(
            loader(world=world, rank=rank, micro=micro, workers=workers, **options)
        ):
            batch = prepare(batch)
            one_hot, share = torch.eye(7)[batch["target"]], batch["mix_share"].view(-1, 1)
            targets = share * one_hot + (1 - share) * one_hot[batch["mix_partner"]]
            for k in batch["weight"].nonzero().flatten().tolist():
                position = int(batch["position"][k])
                assert position not in seen
                seen[position] = batch["image"][k].contiguous().numpy().tobytes(), targets[k].tolist()
    return seen


# 20 samples in batches of 8 are steps of 6, 7 and 7: odd ones, and at world 3 shares of 2, 2 and 3.
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_no_split_of_the_batch_changes_what_is_mixed(world: int) -> None:
    expected = by_position(1, None)
    assert sorted(expected) == list(range(40))
    for micro, workers in ((None, 1), (2, 0), (4, 0), (3, 0)):
        assert by_position(world, micro, workers if world < 3 else 0) == expected


def test_fewer_pairs_than_ranks() -> None:
    expected = by_position(1, None, size=5, batch=4, total=4)
    assert by_position(3, 2, size=5, batch=4, total=4) == expected and sorted(expected) == list(range(10))
    ghost = next(iter(loader(size=5, batch=4, world=3, rank=2)))[0]
    assert ghost["weight"].tolist() == [0.0] and ghost["mix_share"].tolist() == [1.0]
    assert ghost["mix_partner"].tolist() == [0] and (ghost["mix_box"] == 0).all()


def test_micro_batches_are_cut_at_pairs() -> None:
    def lengths(micro: int | None) -> list[int]:
        return [len(batch["index"]) for batch in next(iter(loader(size=7, batch=7, micro=micro)))]

    assert lengths(None) == [7]
    assert lengths(2) == lengths(3) == [2, 2, 2, 1]
    assert lengths(4) == lengths(5) == [4, 3]


def test_micro_batch_or_batch_of_one() -> None:
    with pytest.raises(UserError, match=r"--mixup and --cutmix.*--micro-batch is 1\."):
        BOTH.check(LABEL, TrainConfig(batch_size=8, micro_batch=1))
    with pytest.raises(UserError, match=r"^--cutmix: .*--batch-size is 1\."):
        Mixing(cutmix=1.0).check(LABEL, TrainConfig(batch_size=1))
    with pytest.raises(UserError, match="--mixup"):
        BOTH.check(NUMBERS, TrainConfig())
    with pytest.raises(AssertionError, match="no pair fits"):
        next(iter(loader(micro=1)))
    next(iter(loader(micro=1, mixing=None)))


def test_a_torn_pair_is_noticed() -> None:
    with pytest.raises(AssertionError, match="torn"):
        draw_mixes(BOTH, 0, [Address(0, 0, 0), Address(1, 0, 2)], 8, 8)
    torn = train_loader(NumberSource(9), TRANSFORM, GlobalOrderSampler(9, 6, 2, 0, 0), 1, 0, 0, 1, mixing=BOTH)
    assert all(batch["mix_partner"].tolist() == [0] for batch in next(iter(torn))), "none has its partner with it"


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (-1.0, 1.0), (float("inf"), 0.0), (float("nan"), 1.0)])
def test_alphas_that_mean_nothing(alphas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="mixup and cutmix"):
        Mixing(*alphas)
    with pytest.raises(UserError, match="--cutmix is infinite"):
        Mixing.of(AugmentConfig(cutmix=float("inf")))


def test_damaged_images_are_still_named() -> None:
    with pytest.raises(UserError, match="torn in two"):
        list(loader(source=NumberSource(20, bad=[3])))


def test_mixing_leaves_the_images_own_draws_alone() -> None:
    plain, mixed = next(iter(loader(mixing=None)))[0], next(iter(loader()))[0]
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_without_waiting() -> None:
    (batch,) = next(iter(loader()))
    expected = DeviceTransform(PREPROCESS, "cpu", True)(batch)["image"]
    prepare, pinned = DeviceTransform(PREPROCESS, "cuda", True), {name: t.pin_memory() for name, t in batch.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = prepare(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(moved["image"].cpu(), expected)
