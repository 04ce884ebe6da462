"""How samples are divided: stratified, by whole groups, reproducibly."""

from collections import Counter

import numpy as np
import pytest

from ddp_ft.config.forms import parse_fold
from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from ddp_ft.data.splits.stratify import Pool, deal, draw
from ddp_ft.errors import UserError


def random_pool(seed: int, kind: str, grouped: bool) -> Pool:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(40, 160))
    shares = generator.dirichlet(np.full(int(generator.integers(2, 6)), 2.0))
    labels = generator.choice(len(shares), size, p=shares)
    if kind == LABEL:
        targets = labels.astype(np.int64)
    elif kind == LABELS:
        targets = (generator.random((size, len(shares))) < shares).astype(np.float32)
    else:
        targets = generator.normal(size=(size, 1)).astype(np.float32)
    groups = [f"g{number}" for number in generator.integers(0, size // 3, size)] if grouped else None
    return Pool([f"{k}.png" for k in range(size)], kind, targets, groups)


def strata(pool: Pool) -> np.ndarray:
    """One row a sample, one column a class, label or third of the numbers."""
    if pool.kind == LABEL:
        return np.eye(int(pool.targets.max()) + 1)[pool.targets]
    if pool.kind == LABELS:
        return pool.targets
    return np.eye(3)[np.searchsorted(np.quantile(pool.targets, [1 / 3, 2 / 3]), pool.targets[:, 0])]


def reordered(pool: Pool, order: np.ndarray) -> Pool:
    groups = None if pool.groups is None else [pool.groups[k] for k in order]
    return Pool([pool.names[k] for k in order], pool.kind, pool.targets[order], groups)


def crossing(pool: Pool, parts: np.ndarray) -> set[str]:
    homes: dict[str, set[int]] = {}
    for group, part in zip(pool.groups or [], parts.tolist(), strict=False):
        homes.setdefault(group, set()).add(part)
    return {group for group, home in homes.items() if len(home) > 1}


CASES = [(seed, kind, grouped) for seed in range(12) for kind in (LABEL, LABELS, NUMBERS) for grouped in (False, True)]


@pytest.mark.parametrize(("seed", "kind", "grouped"), CASES)
def test_drawn_part(seed: int, kind: str, grouped: bool) -> None:
    pool = random_pool(seed, kind, grouped)
    share = (0.1, 0.2, 0.3)[seed % 3]
    drawn = draw(pool, share, seed)
    assert drawn.shape == (len(pool),) and drawn.dtype == np.bool_
    assert not crossing(pool, drawn)
    largest = max(Counter(pool.groups).values()) if pool.groups else 1
    slack = largest + len(strata(pool)[0]) / 2
    assert abs(drawn.sum() - share * len(pool)) <= slack
    held, whole = strata(pool)[drawn].sum(0), strata(pool).sum(0)
    assert (abs(held - share * whole) <= np.maximum(2 * largest, 0.1 * whole)).all()
    if kind != NUMBERS:
        assert ((whole - held)[whole > 0] > 0).all(), "training lacks a class"


@pytest.mark.parametrize(("seed", "kind", "grouped"), CASES)
def test_dealt_parts(seed: int, kind: str, grouped: bool) -> None:
    pool = random_pool(seed, kind, grouped)
    folds = 2 + seed % 4
    parts = deal(pool, folds, seed)
    assert sorted(set(parts.tolist())) == list(range(folds))
    assert not crossing(pool, parts)
    largest = max(Counter(pool.groups).values()) if pool.groups else 1
    sizes = np.bincount(parts)
    assert sizes.sum() == len(pool) and sizes.max() - sizes.min() <= (2 * largest if grouped or kind == LABELS else 1)
    whole = strata(pool).sum(0)
    for part in range(folds):
        held = strata(pool)[parts == part].sum(0)
        assert (abs(held - whole / folds) <= 2 * largest + 0.1 * whole / folds).all()
    if kind == LABEL and not grouped:
        counts = np.stack([np.bincount(pool.targets[parts == part], minlength=len(whole)) for part in range(folds)])
        assert (counts.max(0) - counts.min(0) <= 1).all()


@pytest.mark.parametrize("kind", [LABEL, LABELS, NUMBERS])
@pytest.mark.parametrize("grouped", [False, True])
def test_seed_alone_decides(kind: str, grouped: bool) -> None:
    pool = random_pool(3, kind, grouped)
    order = np.random.default_rng(0).permutation(len(pool))
    shuffled = reordered(pool, order)
    drawn, parts = draw(pool, 0.2, 7), deal(pool, 3, 7)
    assert (draw(pool, 0.2, 7) == drawn).all() and (deal(pool, 3, 7) == parts).all()
    assert (draw(shuffled, 0.2, 7) == drawn[order]).all()
    assert (deal(shuffled, 3, 7) == parts[order]).all()
    assert (draw(pool, 0.2, 8) != drawn).any() and (deal(pool, 3, 8) != parts).any()


def test_rare_labels_are_on_both_sides() -> None:
    targets = np.zeros((100, 6), np.float32)
    targets[:, 0] = 1
    for label in range(1, 6):
        targets[2 * label : 2 * label + 2, label] = 1  # two images each
    for seed in range(10):
        drawn = draw(Pool([f"{k}" for k in range(100)], LABELS, targets), 0.15, seed)
        assert targets[drawn].any(0).all() and targets[~drawn].any(0).all()
        assert 12 <= drawn.sum() <= 20


def test_rare_classes_in_groups_are_on_both_sides() -> None:
    # Each class has three patients of five images, all of that class.
    groups = [f"patient{k // 5}" for k in range(60)]
    targets = np.arange(60) // 15
    for seed in range(10):
        drawn = draw(Pool([f"{k}" for k in range(60)], LABEL, targets, groups), 0.1, seed)
        assert set(targets[drawn]) == set(targets[~drawn]) == {0, 1, 2, 3}
        assert drawn.sum() == 20


def test_a_class_in_one_group_stays_for_training() -> None:
    groups = ["only"] * 6 + [f"g{k}" for k in range(30)]
    targets = np.array([1] * 6 + [0] * 30)
    for seed in range(10):
        drawn = draw(Pool([f"{k}" for k in range(36)], LABEL, targets, groups), 0.3, seed)
        assert not drawn[:6].any() and drawn.any()


def test_groups_that_cannot_be_divided() -> None:
    names, targets = [f"{k}" for k in range(20)], np.arange(20) % 2
    assert not draw(Pool(names, LABEL, targets, ["one"] * 20), 0.2, 0).any()
    by_class = [f"class{target}" for target in targets]
    assert not draw(Pool(names, LABEL, targets, by_class), 0.2, 0).any()
    numbers = np.arange(20, dtype=np.float32)[:, None]
    assert not draw(Pool(names, NUMBERS, numbers, ["one"] * 20), 0.2, 0).any()


def test_few_large_groups() -> None:
    names, targets = [f"{k}" for k in range(40)], np.arange(40) % 2
    halves = ["a"] * 25 + ["b"] * 15
    drawn = draw(Pool(names, LABEL, targets, halves), 0.15, 0)
    assert drawn.tolist() == [False] * 25 + [True] * 15
    numbers = np.arange(40, dtype=np.float32)[:, None]
    assert draw(Pool(names, NUMBERS, numbers, halves), 0.15, 0).tolist() == [False] * 25 + [True] * 15


def test_numbers_are_spread_over_their_range() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=(400, 1))).astype(np.float32)
    drawn = draw(Pool([f"{k}" for k in range(400)], NUMBERS, values), 0.15, 0)
    assert drawn.sum() == 60
    tenths = np.searchsorted(np.quantile(values, np.arange(1, 10) / 10), values[drawn, 0], side="right")
    assert np.bincount(tenths).tolist() == [6] * 10


def test_two_numbers_can_be_divided() -> None:
    assert draw(Pool(["a", "b"], NUMBERS, np.array([[0.5], [1.5]], np.float32)), 0.15, 0).sum() == 1


@pytest.mark.parametrize("text", ["0/5", "6/5", "2/1", "a/b", "2", "", "1/2/3", "-1/5", "1.5/3", "/", "²/5"])
def test_folds_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.fold"):
        parse_fold(text)


def test_folds() -> None:
    assert parse_fold("2/5") == (2, 5) and parse_fold(" 1 / 2 ") == (1, 2)
    pool = Pool(["a", "b", "c"], LABEL, np.array([0, 1, 1]))
    assert sorted(deal(pool, 3, 0).tolist()) == [0, 1, 2]
    with pytest.raises(UserError, match=r"4 parts.* 3 images"):
        deal(pool, 4, 0)
    with pytest.raises(UserError, match=r"3 parts.* 2 groups"):
        deal(Pool(pool.names, LABEL, pool.targets, ["x", "y", "y"]), 3, 0)


def test_a_class_in_one_group_trains_even_where_most_is_held_back() -> None:
    groups = ["only"] + [f"g{k}" for k in range(30)]
    for seed in range(10):
        drawn = draw(Pool(groups, LABEL, np.array([1] + [0] * 30), groups), 0.8, seed)
        assert not drawn[0] and drawn.sum() >= 20


def test_small_groups_make_up_for_a_large_one() -> None:
    groups = ["large"] * 20 + [f"g{k}" for k in range(20)]
    pool = Pool([f"{k}" for k in range(40)], LABEL, np.arange(40) % 2, groups)
    for seed in range(10):
        assert np.bincount(deal(pool, 2, seed)).tolist() == [20, 20]


def test_validation_does_not_outgrow_training_for_a_rare_class() -> None:
    groups = ["a"] * 48 + ["b"] * 48 + [f"g{k}" for k in range(16)]
    targets = np.zeros(112, np.int64)
    targets[[0, 50]] = 1  # in the two large groups alone
    for seed in range(10):
        drawn = draw(Pool([f"{k}" for k in range(112)], LABEL, targets, groups), 0.1, seed)
        assert 8 <= drawn.sum() <= 16 and not targets[drawn].any()
