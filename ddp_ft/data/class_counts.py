"""How many pictures there are of each class, and how sure a figure of so many pictures is."""

import math
from dataclasses import dataclass

import numpy as np

from ddp_ft.contracts import LABEL, NUMBERS, LabelledSource, Schema


@dataclass(frozen=True)
class ClassCounts:
    """Pictures of each class, or with each label where a picture may have several; `total` counts the pictures."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    total: int

    @property
    def smallest(self) -> tuple[str, int]:
        """The first of the classes with the fewest pictures, and how many it has."""
        return min(zip(self.names, self.counts, strict=True), key=lambda each: each[1])

    @property
    def largest(self) -> tuple[str, int]:
        """The first of the classes with the most pictures, and how many it has."""
        return max(zip(self.names, self.counts, strict=True), key=lambda each: each[1])

    @property
    def imbalance(self) -> float:
        """How many times as many pictures the largest class has as the smallest; infinite where that one has none."""
        return self.largest[1] / self.smallest[1] if self.smallest[1] else math.inf


def count_classes(source: LabelledSource, schema: Schema) -> ClassCounts | None:
    """The counts of a set, from its targets alone; None where targets are numbers."""
    if schema.kind == NUMBERS:
        return None
    targets = source.targets
    counts = np.bincount(targets, minlength=len(schema.names)) if schema.kind == LABEL else (targets > 0.5).sum(0)
    return ClassCounts(schema.names, tuple(int(count) for count in counts), len(source))
