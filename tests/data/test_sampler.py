import itertools

import pytest
import torch
from torch.utils.data.distributed import DistributedSampler

from ddp_ft.data.rng import derive_seed
from ddp_ft.data.sampler import GlobalOrderSampler, even_share


def sampler(size: int, batch: int, world: int = 1, rank: int = 0, seed: int = 0, shuffle: bool = True):
    return GlobalOrderSampler(size, batch, world, rank, seed, shuffle)


SHAPES = [(1, 1), (5, 4), (7, 7), (10, 3), (20, 8), (101, 32), (3, 50)]


@pytest.mark.parametrize(("size", "batch"), SHAPES)
def test_each_epoch_sees_every_sample_once_in_even_batches(size: int, batch: int) -> None:
    order = sampler(size, batch)
    assert order.steps_per_epoch == -(-size // batch)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.global_batch(step) for step in steps]
        lengths = [len(addresses) for addresses in batches]
        assert max(lengths) - min(lengths) <= 1 and max(lengths) <= batch and min(lengths) >= 1
        assert lengths == [order.batch_length(step) for step in steps]
        seen = list(itertools.chain.from_iterable(batches))
        assert sorted(address.index for address in seen) == list(range(size))
        assert [address.position for address in seen] == list(range(epoch * size, (epoch + 1) * size))
        assert {address.epoch for address in seen} == {epoch}
        assert not any(address.ghost for address in seen)


@pytest.mark.parametrize(("size", "batch"), SHAPES)
def test_shares_together_are_the_global_batch_at_any_world_size(size: int, batch: int) -> None:
    whole = sampler(size, batch)
    for world in (1, 2, 3, 5):
        ranks = [sampler(size, batch, world, rank) for rank in range(world)]
        for step in range(2 * whole.steps_per_epoch):
            shares = [rank.share(step) for rank in ranks]
            real = [[address for address in share if not address.ghost] for share in shares]
            assert list(itertools.chain.from_iterable(real)) == whole.global_batch(step)
            lengths = [len(share) for share in real]
            assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1
            assert [len(share) for share in shares] == [rank.share_length(step) for rank in ranks]


def test_uneven_share() -> None:
    assert [len(sampler(16, 8, 3, rank).share(0)) for rank in range(3)] == [3, 3, 2]
    assert [even_share(8, 3, part) for part in range(3)] == [range(3), range(3, 6), range(6, 8)]


def test_rank_without_samples_gets_one_ghost() -> None:
    # 5 samples in batches of 4: two steps, of 2 and 3 samples, over 3 ranks.
    ranks = [sampler(5, 4, 3, rank) for rank in range(3)]
    assert [[address.ghost for address in rank.share(0)] for rank in ranks] == [[False], [False], [True]]
    assert [[address.ghost for address in rank.share(1)] for rank in ranks] == [[False]] * 3
    ghost, first = ranks[2].share(0)[0], ranks[0].global_batch(0)[0]
    assert (ghost.index, ghost.epoch, ghost.position) == (first.index, first.epoch, first.position)
    assert [list(rank) for rank in ranks][2] == [ranks[2].share(1)[0].index]
    assert [len(rank) for rank in ranks] == [2, 2, 1]


def test_any_step_can_be_asked_for_first() -> None:
    walked = sampler(101, 32, 2, 1, seed=7)
    steps = [walked.share(step) for step in range(12)]
    assert [sampler(101, 32, 2, 1, seed=7).share(step) for step in reversed(range(12))] == steps[::-1]


def test_order_follows_seed_and_epoch() -> None:
    def indices(seed: int, epoch: int) -> list[int]:
        return [address.index for address in sampler(50, 50, seed=seed).global_batch(epoch)]

    orders = [indices(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert indices(1, 2) == indices(1, 2)


def test_order_of_this_version_is_that_of_all_later_ones() -> None:
    # A change here would let a run go on with other samples than it began with.
    assert derive_seed(0, 0) == 411788715114236230
    assert [address.index for address in sampler(10, 10).global_batch(0)] == [7, 6, 2, 8, 1, 9, 4, 3, 5, 0]


def test_without_shuffling() -> None:
    order = sampler(5, 2, shuffle=False)
    assert [address.index for step in range(6) for address in order.global_batch(step)] == [*range(5), *range(5)]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_it_is_a_distributed_sampler(world: int) -> None:
    ranks = [GlobalOrderSampler(range(23), 8, world, rank, 0) for rank in range(world)]
    epochs = []
    for epoch in range(2):
        for rank in ranks:
            assert isinstance(rank, DistributedSampler)
            rank.set_epoch(epoch)
        indices = [list(rank) for rank in ranks]
        assert [len(part) for part in indices] == [len(rank) for rank in ranks]
        assert sorted(itertools.chain.from_iterable(indices)) == list(range(23))
        epochs.append(indices)
    assert epochs[0] != epochs[1]
    loader = torch.utils.data.DataLoader(range(23), batch_size=4, sampler=ranks[0], generator=torch.Generator())
    assert torch.cat(list(loader)).tolist() == epochs[1][0]


def test_callers_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    sampler(20, 4).share(9)
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_seeds() -> None:
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)} | {derive_seed(a) for a in range(30)}
    assert len(seeds) == 930
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("size", "batch"), [(0, 4), (4, 0)])
def test_nothing_to_sample(size: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sampler(size, batch)


@pytest.mark.parametrize(("size", "batch"), SHAPES)
def test_shares_cut_at_pairs(size: int, batch: int) -> None:
    whole = sampler(size, batch)
    for world in (1, 2, 3, 5):
        ranks = [GlobalOrderSampler(size, batch, world, rank, 0, pairs=True) for rank in range(world)]
        for step in range(2 * whole.steps_per_epoch):
            real = [[address for address in rank.share(step) if not address.ghost] for rank in ranks]
            assert list(itertools.chain.from_iterable(real)) == whole.global_batch(step)
            lengths = [len(share) for share in real]
            assert all(length % 2 == 0 for length in lengths[:-1]), "a pair was torn apart"
            assert max(lengths) - min(lengths) <= 2
            assert [len(rank.share(step)) for rank in ranks] == [rank.share_length(step) for rank in ranks]
        assert sum(len(rank) for rank in ranks) == size


def weighted(weights: list[float] | torch.Tensor, batch: int = 8, world: int = 1, rank: int = 0, seed: int = 0):
    weights = torch.as_tensor(weights, dtype=torch.float64)
    return GlobalOrderSampler(len(weights), batch, world, rank, seed, weights=weights)


def counts(order: GlobalOrderSampler, epoch: int) -> torch.Tensor:
    order.set_epoch(epoch)
    return torch.bincount(torch.tensor(list(order)), minlength=order.size)


def test_weighted_draws_are_as_many_as_expected() -> None:
    weights = torch.rand(60, generator=torch.Generator().manual_seed(1)).double() ** 3
    weights[[0, 7, 59]] = 0
    expected = 60 * weights / weights.sum()
    drawn = torch.stack([counts(weighted(weights, 60), epoch) for epoch in range(300)])
    assert (drawn.sum(1) == 60).all()
    assert (drawn >= expected.floor()).all() and (drawn <= expected.ceil()).all()
    assert (drawn[:, [0, 7, 59]] == 0).all()
    # A mean of 300 draws of a rounded number: 0.03 is its deviation at most.
    assert (drawn.double().mean(0) - expected).abs().max() < 0.12


def test_samples_of_a_weight_come_together_as_often_as_expected() -> None:
    classes = torch.tensor([0] * 70 + [1] * 20 + [2] * 9)
    weights = (1 / torch.bincount(classes).double())[classes]
    seen = []
    for epoch in range(20):
        drawn = counts(weighted(weights, 99), epoch)
        per_class = torch.bincount(classes, drawn.double())
        assert (per_class == 33).all()
        seen.append(tuple(drawn[:70].tolist()))
    assert len(set(seen)) == 20, "which of the frequent ones are left out is drawn anew in each epoch"


def test_any_two_samples_may_meet() -> None:
    """Without shuffling the line, of two neighbours that come every other time always one would come."""
    weights = torch.tensor([1.0, 1.0, 2.0 + 1e-9, 2.0, 2.0 - 1e-9, 2.0 + 2e-9, 1.0, 1.0])
    pairs = {tuple((counts(weighted(weights), epoch)[[0, 1]] > 0).tolist()) for epoch in range(60)}
    assert pairs == {(True, True), (True, False), (False, True), (False, False)}


def test_weighted_order_is_mixed_within_the_epoch() -> None:
    weights = torch.tensor([1.0] * 50 + [3.0] * 50)
    order = weighted(weights, 10)
    batches = [[address.index >= 50 for address in order.global_batch(step)] for step in range(10)]
    assert sum(map(sum, batches)) == 75 and min(map(sum, batches)) > 2 and len({tuple(b) for b in batches}) > 5


def test_weighted_order_is_the_same_at_any_world_size_and_from_any_step() -> None:
    weights = torch.rand(23, generator=torch.Generator().manual_seed(2))
    whole = weighted(weights)
    steps = [whole.global_batch(step) for step in range(9)]
    for world in (2, 3):
        ranks = [weighted(weights, world=world, rank=rank) for rank in range(world)]
        for step in range(9):
            shares = [address for rank in ranks for address in rank.share(step) if not address.ghost]
            assert shares == steps[step]
    assert [weighted(weights).global_batch(step) for step in reversed(range(9))] == steps[::-1]
    positions = [address.position for batch in steps for address in batch]
    assert positions == list(range(3 * 23)), "two draws of a sample are two places, and so augmented differently"
    assert weighted(weights, seed=1).global_batch(0) != steps[0]


def test_weighted_order_of_this_version_is_that_of_all_later_ones() -> None:
    order = weighted([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])
    assert [address.index for address in order.global_batch(0)] == [6, 4, 7, 2, 3, 7, 5, 1]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_equal_weights_are_each_sample_once(size: int) -> None:
    for epoch in range(5):
        assert (counts(weighted([0.1] * size, 64), epoch) == 1).all()


def test_weights_of_another_length() -> None:
    with pytest.raises(ValueError, match="weights for 5 samples"):
        GlobalOrderSampler(5, 2, 1, 0, 0, weights=torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="shuffle"):
        GlobalOrderSampler(4, 2, 1, 0, 0, shuffle=False, weights=torch.ones(4, dtype=torch.float64))
