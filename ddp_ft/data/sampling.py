"""How often each sample is to be drawn: equally frequent classes, or weights of the user's own."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.contracts import LABELS, NUMBERS
from ddp_ft.errors import UserError, nearest

SAMPLINGS = ("natural", "balanced", "weighted")


def sampling_weights(
    kind: str, targets: NDArray[np.generic], weights: NDArray[np.float32] | None, schema_kind: str
) -> Tensor | None:
    """In proportion to what samples are drawn, float64 (N,); None if each is seen once an epoch.

    `kind` is data.sampling. "balanced" gives a sample 1 / (number of samples of its class). With several labels it
    is that of its rarest label; a sample without any gets the smallest weight there is. "weighted" gives the
    samples' own weights. `targets` and `schema_kind` are as in `LabelledSource` and `Schema`.

    Raises UserError for weights that are missing, negative, no numbers or all 0, and for balanced numbers.
    """
    if kind not in SAMPLINGS:
        hint = nearest(kind, list(SAMPLINGS)) or f"Known: {', '.join(SAMPLINGS)}."
        raise UserError(f"data.sampling = '{kind}' is unknown.", hint)
    if kind == "natural":
        return None
    if kind == "weighted":
        return torch.from_numpy(_checked(weights))
    if schema_kind == NUMBERS:
        hint = "Use --sampling natural, or --sampling weighted with a column of weights (data.weight)."
        raise UserError("--sampling balanced needs classes, but the targets are numbers.", hint)
    return torch.from_numpy(_of_labels(targets) if schema_kind == LABELS else _of_classes(targets))


def _of_classes(targets: NDArray[np.generic]) -> NDArray[np.float64]:
    _, classes, counts = np.unique(targets, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = 1 / counts[classes]
    return weights


def _of_labels(targets: NDArray[np.generic]) -> NDArray[np.float64]:
    present = targets.astype(np.float64) > 0.5
    if not present.any():
        raise UserError("--sampling balanced: no sample has a label.", "Use --sampling natural.")
    counts = np.maximum(present.sum(axis=0), 1)  # a label that nobody has lends its weight to nobody
    weights: NDArray[np.float64] = np.where(present, 1 / counts, 0.0).max(axis=1)
    return np.where(weights > 0, weights, weights[weights > 0].min())


def _checked(weights: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if weights is None:
        hint = "Name the table's column of weights: --set data.weight=COLUMN."
        raise UserError("--sampling weighted: the samples have no weights.", hint)
    given = weights.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if bad.size:
        raise UserError(
            f"--sampling weighted: {bad.size} of {given.size} weights are negative or no numbers, "
            f"the first {given[bad[0]]} of sample {bad[0]}.",
            "Weights are numbers from 0 up (data.weight); 0: never drawn.",
        )
    if not given.any():
        raise UserError("--sampling weighted: all weights are 0, so there is nothing to draw.", "See data.weight.")
    return given
