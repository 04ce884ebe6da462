"""What holds of an order in which batches have samples of similar length, for any seed, size and batch (hypothesis)."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_ft.data.sampler import GlobalOrderSampler

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("repeatable")

SEEDS, SIZES, BATCHES, WORLDS = st.integers(0, 2**31 - 1), st.integers(1, 300), st.integers(1, 20), st.integers(1, 5)


def order(size, batch, seed, world=1, rank=0, lengths=None):
    sampler = GlobalOrderSampler(size, batch, world, rank, seed)
    if lengths is not None:
        sampler.group_by_length(lengths)
    return sampler


def lengths_of(size, seed):
    return np.random.default_rng(seed).integers(1, 200, size).astype(np.int32)


def padded(sampler, lengths):
    """The places of the batches of an epoch, padding among them."""
    batches = [sampler.global_indices(step).numpy() for step in range(sampler.steps_per_epoch)]
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches)


@given(SEEDS, SIZES, BATCHES, WORLDS)
def test_each_sample_is_seen_once_by_any_number_of_ranks_in_the_same_steps(seed, size, batch, world):
    lengths = lengths_of(size, seed)
    alone = order(size, batch, seed, lengths=lengths)
    ranks = [order(size, batch, seed, world, rank, lengths) for rank in range(world)]
    for step in reversed(
        range(2 * alone.steps_per_epoch)
    ):  # as a start in the middle: nothing follows from the steps before
        shares = [address for each in ranks for address in each.share(step) if not address.ghost]
        assert shares == alone.global_batch(step)
        assert alone.batch_length(step) == order(size, batch, seed).batch_length(step)
    for epoch in range(2):
        steps = range(epoch * alone.steps_per_epoch, (epoch + 1) * alone.steps_per_epoch)
        assert sorted(int(index) for step in steps for index in alone.global_indices(step)) == list(range(size))


@given(SEEDS)
def test_batches_have_samples_of_similar_length(seed):
    """Of lengths that are spread evenly a fifth of what was padding is left; no order has less than none."""
    lengths = lengths_of(3000, seed)
    plain, sampler = order(3000, 10, seed), order(3000, 10, seed, lengths=lengths)
    total = int(lengths.sum())
    assert 0 <= padded(sampler, lengths) - total < (padded(plain, lengths) - total) / 5


def test_they_meet_others_in_each_epoch_and_come_in_no_order_of_length():
    lengths = lengths_of(400, 1)
    sampler = order(400, 8, 3, lengths=lengths)
    epochs = [
        {frozenset(sampler.global_indices(50 * epoch + step).tolist()) for step in range(50)} for epoch in range(3)
    ]
    assert not (epochs[0] & epochs[1] or epochs[1] & epochs[2])
    longest = [int(lengths[sampler.global_indices(step).numpy()].max()) for step in range(50)]
    rises = sum(now > before for before, now in itertools.pairwise(longest))
    assert 15 < rises < 35
