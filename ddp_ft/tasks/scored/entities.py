"""Sets of samples with any number of entities each."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_ft.tasks.scored.base import Floats, ScoredSet, Statistic


class ScoredEntities(ScoredSet):
    """`names` are the types. `estimates` (N x types x 2) are the numbers of entities that are found, and of those that
    are right; `truth` (N x types) of those that are there."""

    counted: ClassVar[str] = "entities"

    def class_table(self) -> list[dict[str, Any]]:
        """For each type, "samples" being the entities that are there."""
        found, right = self.estimates.sum(0).T
        rows = zip(self.names, right.tolist(), found.tolist(), self.truth.sum(0).tolist(), strict=True)
        return [
            {
                "name": name,
                "samples": int(there),
                "precision": good / seen if seen else None,
                "recall": good / there if there else None,
                "f1": 2 * good / (seen + there) if seen + there else None,
            }
            for name, good, seen, there in rows
        ]

    def statistics(self) -> dict[str, Statistic]:
        """Of all entities, whatever their type."""
        found, right = self.estimates.sum(1).T
        there = self.truth.sum(1)
        return {
            "f1": lambda weights: _share(2 * (weights @ right), weights @ (found + there)),
            "precision": lambda weights: _share(weights @ right, weights @ found),
            "recall": lambda weights: _share(weights @ right, weights @ there),
        }

    def has_targets(self, targets: NDArray[Any]) -> bool:
        """Never: tags do not say which entities were counted."""
        return False


def _share(parts: Floats, wholes: Floats) -> Floats:
    return np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0)
