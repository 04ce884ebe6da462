"""The numbers of images of the classes."""

import math
from dataclasses import dataclass

from ddp_ft.contracts import LabelledSource, Schema
from ddp_ft.data.targets.registry import KINDS


@dataclass(frozen=True)
class ClassCounts:
    """Images of each class, or with each label if an image may have several; `total` counts the images."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    total: int

    @property
    def smallest(self) -> tuple[str, int]:
        """The first class with the fewest images, and how many it has."""
        return min(zip(self.names, self.counts, strict=True), key=lambda each: each[1])

    @property
    def largest(self) -> tuple[str, int]:
        """The first class with the most images, and how many it has."""
        return max(zip(self.names, self.counts, strict=True), key=lambda each: each[1])

    @property
    def imbalance(self) -> float:
        """The ratio of the largest to the smallest class; infinite if the smallest has no image."""
        return self.largest[1] / self.smallest[1] if self.smallest[1] else math.inf


def count_classes(source: LabelledSource, schema: Schema) -> ClassCounts | None:
    """The counts of a set, from its targets alone; None if the targets have no classes, as numbers."""
    counts = KINDS[schema.kind].counts(source.targets, schema.names)
    return None if counts is None else ClassCounts(schema.names, tuple(counts.tolist()), len(source))
