"""Samples of several splits that were all looked at: which are damaged, and which are the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LabelledSource


@dataclass(kw_only=True)
class Surveyed:
    """All samples of the splits, one split after the other; a sample's number is its place.

    `roles` (uint8) is a sample's place in `splits`; `targets` (int64) are equal for samples with equal targets, and
    `digests` (uint64) for those that are the same. `damaged` has the reasons by number.
    """

    splits: tuple[str, ...]
    sources: tuple[LabelledSource, ...]
    roles: NDArray[np.uint8]
    targets: NDArray[np.int64]
    digests: NDArray[np.uint64]
    damaged: dict[int, str] = field(default_factory=dict)
    # How samples may differ that are taken for the same; empty if they may not.
    but_for: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.roles)

    def place(self, number: int) -> tuple[LabelledSource, int]:
        """The sample's source, and its index there."""
        role = self.roles[number]  # of their own type, or numpy would convert all roles for each sample
        return self.sources[role], number - int(np.searchsorted(self.roles, role))

    def name(self, number: int) -> str:
        """The sample's name."""
        source, index = self.place(number)
        return source.name(index)

    def without_twins(self) -> Sequence[int]:
        """Numbers of samples that are not compared."""
        return list(self.damaged)

    def are_exact(self, twins: Sequence[int]) -> bool:
        """Whether two of these are the same in every respect."""
        return True

    def twins(self) -> Iterator[list[int]]:
        """Numbers of samples that are the same, two or more, in order; damaged ones are left out."""
        sound = np.setdiff1d(np.arange(len(self)), self.without_twins())
        order = sound[np.argsort(self.digests[sound], kind="stable")]
        ends = np.flatnonzero(np.diff(self.digests[order])) + 1
        starts, stops = np.concatenate([[0], ends]), np.concatenate([ends, [len(order)]])
        for start, stop in zip(starts[stops - starts > 1], stops[stops - starts > 1], strict=True):
            yield [int(number) for number in order[start:stop]]


def laid_out(splits: Mapping[str, LabelledSource]) -> dict[str, Any]:
    """The fields of `Surveyed` for these sets, before anything was looked at."""
    sources = tuple(splits.values())
    sizes = [len(source) for source in sources]
    return {
        "splits": tuple(splits),
        "sources": sources,
        "roles": np.repeat(np.arange(len(sources), dtype=np.uint8), sizes),
        "targets": _numbered([source.targets for source in sources]),
        "digests": np.zeros(sum(sizes), np.uint64),
    }


def digest_of(content: bytes) -> int:
    """A hash of 64 bits: of a million samples, two are taken for the same by mistake once in 40 million surveys."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")


def _numbered(targets: Sequence[NDArray[np.generic]]) -> NDArray[np.int64]:
    """A number for each distinct target: the class number, or a hash of the bytes of labels, numbers or tags."""

    def hashed(row: NDArray[np.generic]) -> int:
        return int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "big", signed=True)

    return np.concatenate(
        [
            each if each.ndim == 1 and each.dtype != object else np.fromiter(map(hashed, each), np.int64, len(each))
            for each in targets
        ]
    ).astype(np.int64)
