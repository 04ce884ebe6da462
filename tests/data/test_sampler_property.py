"""What holds of the global order for any seed, size, batch, world sizes and interruptions (hypothesis)."""

import itertools
from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_ft.contracts import Address
from ddp_ft.data.sampler import GlobalOrderSampler, sampling_weights

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("repeatable")

SEEDS, SIZES, BATCHES, WORLDS = st.integers(0, 2**31 - 1), st.integers(1, 90), st.integers(1, 40), st.integers(1, 7)
# World size of each start, and how many steps pass until it is killed.
STARTS = st.lists(st.tuples(WORLDS, st.integers(0, 12)), min_size=1, max_size=6)
EPOCHS = 2


def ranks(world: int, *args, **options) -> list[GlobalOrderSampler]:
    size, batch, seed = args
    return [GlobalOrderSampler(size, batch, world, rank, seed, **options) for rank in range(world)]


def run(starts: list[tuple[int, int]], *args, **options) -> Iterator[list[list[Address]]]:
    """The shares of all ranks in each step of a run of EPOCHS that is killed and goes on, until it is done."""
    step, last = 0, EPOCHS * ranks(1, *args, **options)[0].steps_per_epoch
    for number, (world, steps) in enumerate(starts):
        stop = last if number == len(starts) - 1 else min(last, step + steps)
        samplers = ranks(world, *args, **options)  # as a new start makes them: nothing is kept but the step
        for each in range(step, stop):
            yield [sampler.share(each) for sampler in samplers]
        step = stop


def real(shares: list[list[Address]]) -> list[Address]:
    return [address for share in shares for address in share if not address.ghost]


@given(SEEDS, SIZES, BATCHES, STARTS, st.booleans())
def test_each_sample_of_each_epoch_is_visited_once_and_in_the_global_order(seed, size, batch, starts, pairs):
    visited = [real(shares) for shares in run(starts, size, batch, seed, pairs=pairs)]
    (whole,) = ranks(1, size, batch, seed, pairs=pairs)
    assert visited == [whole.global_batch(step) for step in range(EPOCHS * whole.steps_per_epoch)]
    addresses = list(itertools.chain.from_iterable(visited))
    assert [address.position for address in addresses] == list(range(EPOCHS * size))
    for epoch in range(EPOCHS):
        of_epoch = addresses[epoch * size : (epoch + 1) * size]
        assert sorted(address.index for address in of_epoch) == list(range(size))
        assert {address.epoch for address in of_epoch} == {epoch}


@given(SEEDS, SIZES, BATCHES, WORLDS)
def test_batches_and_shares_are_even(seed, size, batch, world):
    samplers = ranks(world, size, batch, seed)
    steps = samplers[0].steps_per_epoch
    assert steps == -(-size // batch)
    lengths = [len(samplers[0].global_batch(step)) for step in range(steps)]
    assert sum(lengths) == size and max(lengths) - min(lengths) <= 1 and max(lengths) <= batch
    for step in range(steps):
        shares = [sampler.share(step) for sampler in samplers]
        counts = [sum(not address.ghost for address in share) for share in shares]
        assert max(counts) - min(counts) <= 1 and all(shares), "no rank is without a sample, were it a ghost"
        assert [len(share) for share in shares] == [sampler.share_length(step) for sampler in samplers]


@given(SEEDS, st.integers(2, 90), st.integers(2, 40), STARTS)
def test_pairs_stay_together(seed, size, batch, starts):
    for shares in run(starts, size, batch, seed, pairs=True):
        first = real(shares)[0].position
        places = [{(a.position - first) // 2 for a in share if not a.ghost} for share in shares]
        assert sum(map(len, places)) == len(set().union(*places)), "a pair is on two ranks"
        lengths = [sum(not address.ghost for address in share) for share in shares]
        assert max(lengths) - min(lengths) <= 2


WEIGHTS = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60).filter(any)


@given(SEEDS, WEIGHTS, BATCHES, STARTS)
def test_weighted_draws_depend_on_no_world_and_no_interruption(seed, given_weights, batch, starts):
    weights, size = torch.tensor(given_weights, dtype=torch.float64), len(given_weights)
    visited = [real(shares) for shares in run(starts, size, batch, seed, weights=weights)]
    (whole,) = ranks(1, size, batch, seed, weights=weights)
    assert visited == [whole.global_batch(step) for step in range(EPOCHS * whole.steps_per_epoch)]
    expected = size * weights / weights.sum()
    for epoch in range(EPOCHS):
        indices = [address.index for share in visited for address in share if address.epoch == epoch]
        drawn = torch.bincount(torch.tensor(indices), minlength=size)
        assert drawn.sum() == size and (drawn[weights == 0] == 0).all()
        assert ((drawn - expected).abs() < 1 + 1e-6).all()


@given(SEEDS, st.lists(st.integers(0, 4), min_size=2, max_size=80), BATCHES, STARTS)
def test_balanced_draws_depend_on_no_world_and_are_balanced(seed, classes, batch, starts):
    targets = torch.tensor(classes)
    weights = sampling_weights("balanced", targets.numpy(), None, "label")
    visited = [real(shares) for shares in run(starts, len(classes), batch, seed, weights=weights)]
    (whole,) = ranks(1, len(classes), batch, seed, weights=weights)
    assert visited == [whole.global_batch(step) for step in range(EPOCHS * whole.steps_per_epoch)]
    for epoch in range(EPOCHS):
        seen = targets[[address.index for share in visited for address in share if address.epoch == epoch]]
        counts = torch.bincount(seen, minlength=5)[targets.unique()]
        assert counts.max() - counts.min() <= 1
