"""Entities in sequences of tags, and how many of them are found.

The rules are those of CoNLL's evaluation script (conlleval), as in seqeval's default mode: an entity begins at B and S,
where the type changes, and after O, E or S; so sequences that break the rules of IOB2 have entities too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_ft.data.tag_names import OUTSIDE, type_of

Ints = NDArray[np.int64]


class Entities(NamedTuple):
    """Entities, each int64 (N): the sample, the number of the type, the first word and the one after the last, both
    counted within the sample."""

    sample: Ints
    kind: Ints
    start: Ints
    stop: Ints

    def as_set(self) -> set[tuple[int, ...]]:
        """One for each entity."""
        return set(zip(*(column.tolist() for column in self), strict=True))


def types_of(names: Sequence[str]) -> list[str]:
    """The types of entities that these tags have, in order."""
    return sorted({type_of(name) for name in names if name != OUTSIDE})


def entities_of(tags: Ints, lengths: Ints, names: tuple[str, ...]) -> Entities:
    """The entities in the tags of all samples in sequence; `lengths` are the samples' numbers of words, `names` the
    tags'."""
    begins, ends, kinds = _rules(names)
    outside = len(names)  # what stands between two samples
    samples = np.repeat(np.arange(len(lengths)), lengths)
    firsts = np.cumsum(lengths) - lengths
    # Each sample with an O after it, so that none goes on into the next.
    places = np.arange(len(tags)) + samples
    padded = np.full(len(tags) + len(lengths), outside)
    padded[places] = tags
    before = np.concatenate([[outside], padded[:-1]])
    starts, stops = np.flatnonzero(begins[before, padded]), np.flatnonzero(ends[before, padded])
    starts = starts[np.searchsorted(starts, stops, side="left") - 1]
    owner = np.searchsorted(firsts + np.arange(len(lengths)), starts, side="right") - 1
    offset = firsts[owner] + owner
    return Entities(owner, kinds[padded[stops - 1]], starts - offset, stops - offset)


@lru_cache(maxsize=8)
def _rules(names: tuple[str, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Ints]:
    """Whether an entity begins, and whether one ends, where a tag (second) follows another (first); the types of tags.
    The last number stands for no tag."""
    types = types_of(names)
    all_names = [*names, OUTSIDE]
    begins = [[_begins(before, name) for name in all_names] for before in all_names]
    ends = [[_ends(before, name) for name in all_names] for before in all_names]
    kinds = [types.index(type_of(name)) if name != OUTSIDE else -1 for name in all_names]
    return np.array(begins), np.array(ends), np.array(kinds)


def _begins(before: str, tag: str) -> bool:
    if tag == OUTSIDE:
        return False
    return tag[0] in "BS" or before[0] in "OES" or type_of(before) != type_of(tag)


def _ends(before: str, tag: str) -> bool:
    if before == OUTSIDE:
        return False
    return before[0] in "ES" or tag[0] in "BSO" or type_of(before) != type_of(tag)


def counts_of(found: Entities, true: Entities, samples: int, types: int) -> Ints:
    """How many entities are right, are found, and are there: int64 (3, samples, types)."""
    counts = np.zeros((3, samples, types), np.int64)
    right = [entity[:2] for entity in found.as_set() & true.as_set()]
    if right:
        np.add.at(counts[0], tuple(np.array(right).T), 1)
    for place, each in ((1, found), (2, true)):
        np.add.at(counts[place], (each.sample, each.kind), 1)
    return counts


def precision_recall_f1(right: float, found: float, there: float) -> tuple[float, float, float]:
    """Each 0 where it is not defined."""
    return right / found if found else 0.0, right / there if there else 0.0, 2 * right / (found + there or 1)
