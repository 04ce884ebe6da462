"""The samples that validate: drawn class by class, and by whole groups if there are any.

All follows from the seed and the samples' names: no library's generator is used, and the order in which the samples are
given does not matter.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError, shortened

Ints = NDArray[np.int64]

# Bins of a number by which groups are divided; more would leave too few samples of a bin in a group.
_GROUPED_BINS = 10


@dataclass(frozen=True)
class Pool:
    """Samples to divide. `targets` are as in LabelledSource; samples of one group stay together. `folds`: the fold that
    the data gives each sample, if it does."""

    names: Sequence[str]
    kind: str
    targets: NDArray[np.generic]
    groups: Sequence[str] | None = None
    folds: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.names)


def draw(pool: Pool, share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples validate, about `share` of them; none if they cannot be divided.

    If each sample is in one stratum (a class, a bin of numbers): its share of every stratum by hash, and at least one
    sample on each side of every stratum with two or more. For labels, of which a sample may have several, and for
    groups: whole units (samples or groups) are dealt by `_spread`; then units are moved so that every class and label
    is in training, and in validation if two units have it and validation stays within half of the samples.
    """
    strata = _strata(pool, round(len(pool) * min(share, 1 - share)))  # about one of each bin on the smaller side
    if pool.groups is None and strata.ndim == 1:
        return _draw_by_stratum(strata, _hash_order(seed, pool.names), share)
    units, unit_of = _units(pool, strata, seed)
    held_back = _spread(units, [1 - share, share]) == 1
    keeps_strata = KINDS[pool.kind].keeps_strata
    if keeps_strata:
        _cover(units, held_back, max(share, 0.5))
    if not held_back.any():
        _hold_back_one(units, held_back, share, keeps_strata)
    drawn: NDArray[np.bool_] = held_back[unit_of]
    return drawn


def deal(pool: Pool, folds: int, seed: int) -> Ints:
    """The part (0..folds-1) of each sample: by the folds of the data if it has any, else stratified as in `draw`, and
    groups whole.

    Without groups, parts differ in size by at most one sample, and so do their shares of a class. UserError if there
    are fewer samples or groups than parts, or another number of folds.
    """
    if pool.folds is not None:
        return _given_parts(pool.folds, folds)
    count = len(pool) if pool.groups is None else len(set(pool.groups))
    if folds > count:
        what = "images" if pool.groups is None else "groups"
        raise UserError(f"data.fold asks for {folds} parts, but there are only {count} {what}.", "Ask for fewer parts.")
    strata = _strata(pool, len(pool) // folds)
    if pool.groups is not None or strata.ndim > 1:
        units, unit_of = _units(pool, strata, seed)
        dealt: Ints = _spread(units, [1 / folds] * folds)[unit_of]
        return dealt
    order = _hash_order(seed, pool.names)
    by_stratum = order[np.argsort(strata[order], kind="stable")]
    parts = np.empty(len(pool), np.int64)
    parts[by_stratum] = np.arange(len(pool)) % folds
    return parts


def _given_parts(given: Sequence[str], folds: int) -> Ints:
    """The number of each fold in the order of their names, numbers by their value."""
    names = sorted(set(given), key=lambda name: (int(name) if name.isdecimal() else -1, name))
    if len(names) != folds:
        hint = f"Its folds: {shortened(names, 10)}. For the first of them: data.fold=1/{len(names)}."
        raise UserError(f"data.fold asks for {folds} folds, but the column data.folds has {len(names)}.", hint)
    number = {name: position for position, name in enumerate(names)}
    return np.array([number[name] for name in given], np.int64)


def _hash_order(seed: int, names: Sequence[str]) -> Ints:
    hashes = [hashlib.blake2b(os.fsencode(f"{seed},{name}"), digest_size=8).digest() for name in names]
    return np.argsort(np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64), kind="stable")


def _strata(pool: Pool, bins: int) -> NDArray[Any]:
    """The stratum of each sample, or bool (N, strata) as in `TargetKind`; groups have bins of their own number."""
    return KINDS[pool.kind].strata(pool.targets, bins if pool.groups is None else _GROUPED_BINS)


def _draw_by_stratum(strata: Ints, order: Ints, share: float) -> NDArray[np.bool_]:
    left = [min(max(round(count * share), 1), count - 1) for count in np.bincount(strata).tolist()]
    drawn = np.zeros(len(strata), np.bool_)
    for index, stratum in zip(order.tolist(), strata[order].tolist(), strict=True):
        if left[stratum] > 0:
            left[stratum] -= 1
            drawn[index] = True
    return drawn


class _Units(NamedTuple):
    """Samples or groups that are dealt as a whole. Unit u has counts[starts[u]:starts[u+1]] samples of those strata.

    `totals` are the samples of each stratum; `order` is that of dealing, and `places` are the units' places in it.
    """

    sizes: Ints
    starts: Ints
    strata: Ints
    counts: Ints
    totals: Ints
    order: Ints
    places: Ints

    def strata_of(self, unit: int) -> Ints:
        """The strata that have samples of that unit."""
        return self.strata[self.starts[unit] : self.starts[unit + 1]]


def _units(pool: Pool, strata: NDArray[Any], seed: int) -> tuple[_Units, Ints]:
    """The pool's units with those strata (as of `_strata`), and the unit of each sample."""
    labels = pool.names if pool.groups is None else pool.groups
    known = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(known)}
    unit_of = np.array([numbers[name] for name in labels], np.int64)
    samples, members = (np.arange(len(pool)), strata) if strata.ndim == 1 else np.nonzero(strata)
    stratum_count = int(strata.max()) + 1 if strata.ndim == 1 else strata.shape[1]
    pairs, counts = np.unique(unit_of[samples] * stratum_count + members, return_counts=True)
    owners, owned = pairs // stratum_count, pairs % stratum_count
    sizes = np.bincount(unit_of, minlength=len(known))
    starts = np.searchsorted(owners, np.arange(len(known) + 1))
    holders = np.bincount(owned, minlength=stratum_count)
    rarity = np.full(len(known), len(known))
    np.minimum.at(rarity, owners, holders[owned])
    # Large ones first, since small ones can compensate for them; of equal size the rare first; then by hash.
    magnitude = np.array([size.bit_length() for size in sizes.tolist()])
    hashed = _hash_order(seed, known)
    order = hashed[np.lexsort((rarity[hashed], -magnitude[hashed]))]
    totals = np.bincount(members, minlength=stratum_count)
    return _Units(sizes, starts, owned, counts, totals, order, np.argsort(order)), unit_of


def _spread(units: _Units, shares: Sequence[float]) -> Ints:
    """The part of each unit, so that each part has its share of all samples and of each stratum.

    Greedy: each unit in turn goes where the squared differences from the wanted counts, each divided by what is
    wanted (chi-squared), grow least. For single samples with several labels this is close to iterative stratification
    (Sechidis et al. 2011), for groups to scikit-learn's StratifiedGroupKFold.
    """
    # One more stratum holds all samples. Plain lists: units have few strata, and numpy took twice as long.
    totals = [*np.maximum(units.totals, 1).tolist(), int(units.sizes.sum())]
    wanted = [[share * total for total in totals] for share in shares]
    missing = [list(row) for row in wanted]
    starts, sizes = units.starts.tolist(), units.sizes.tolist()
    strata, counts = units.strata.tolist(), units.counts.tolist()
    parts = [0] * len(sizes)
    for unit in units.order.tolist():
        part = slice(starts[unit], starts[unit + 1])
        own = [*zip(strata[part], counts[part], strict=True), (len(totals) - 1, sizes[unit])]
        growth = [
            sum(count * (count - 2 * left[stratum]) / full[stratum] for stratum, count in own)
            for left, full in zip(missing, wanted, strict=True)
        ]
        chosen = parts[unit] = growth.index(min(growth))
        for stratum, count in own:
            missing[chosen][stratum] -= count
    return np.array(parts, np.int64)


def _holders(units: _Units) -> list[Ints]:
    """The units of each stratum."""
    owners = np.repeat(np.arange(len(units.sizes)), np.diff(units.starts))
    by_stratum = np.argsort(units.strata, kind="stable")
    return np.split(owners[by_stratum], np.cumsum(np.bincount(units.strata, minlength=len(units.totals)))[:-1])


def _cover(units: _Units, held_back: NDArray[np.bool_], limit: float) -> None:
    """Move units so that every stratum is in training, and in validation where possible.

    Smallest units first; validation never takes a stratum's last unit, nor more than `limit` of all samples.
    """
    holders = _holders(units)
    rare_first = sorted(range(len(holders)), key=lambda stratum: (len(holders[stratum]), stratum))
    for stratum in rare_first:
        if len(holders[stratum]) and held_back[holders[stratum]].all():
            held_back[_smallest(units, holders[stratum])] = False
    training = np.array([np.count_nonzero(~held_back[those]) for those in holders])
    for stratum in rare_first:
        those = holders[stratum]
        if held_back[those].any():
            continue
        spare = those[[_is_spare(units, unit, training) for unit in those.tolist()]]
        if not len(spare):
            continue
        unit = _smallest(units, spare)
        if units.sizes[held_back].sum() + units.sizes[unit] <= limit * units.sizes.sum():
            held_back[unit] = True
            training[units.strata_of(unit)] -= 1


def _is_spare(units: _Units, unit: int, training: Ints) -> bool:
    """Whether training keeps all strata of the unit without it."""
    return bool((training[units.strata_of(unit)] > 1).all())


def _smallest(units: _Units, candidates: Ints) -> int:
    return int(candidates[np.lexsort((units.places[candidates], units.sizes[candidates]))[0]])


def _hold_back_one(units: _Units, held_back: NDArray[np.bool_], share: float, keep_strata: bool) -> None:
    """Hold back the unit nearest to the share, if one can be spared: all are too large for the share."""
    if len(units.sizes) < 2:
        return
    training = np.array([len(those) for those in _holders(units)])
    wanted = share * units.sizes.sum()
    if spare := [u for u in units.order.tolist() if not keep_strata or _is_spare(units, u, training)]:
        held_back[min(spare, key=lambda unit: abs(units.sizes[unit] - wanted))] = True
