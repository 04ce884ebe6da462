"""Means over classes of metrics of yes-or-no decisions, with classes that may be missing from the set."""

from collections.abc import Callable

import torch
from torch import Tensor

# AUROC of guessing, and of a set in which no class has both answers.
CHANCE = 0.5


def mean_auroc(probabilities: Tensor, truth: Tensor, known: Tensor | None = None) -> float:
    """Mean area under the ROC curve of each class against the rest (N x C each, `truth` of bool).

    Classes that all samples of the set have, or none, have no such curve and are left out; 0.5 if there is no other.
    As for all metrics here, only the samples count for a class of which it is `known` (bool, N x C; None: all).
    """
    from torchmetrics.functional.classification import binary_auroc

    usable = truth.any(0) & ~(truth if known is None else truth | ~known).all(0)
    return _mean_over(binary_auroc, probabilities, (truth, known), usable, empty=CHANCE)


def mean_average_precision(probabilities: Tensor, truth: Tensor, known: Tensor | None = None) -> float:
    """Mean average precision over the classes that a sample of the set has; 0 if there is none."""
    from torchmetrics.functional.classification import binary_average_precision

    return _mean_over(binary_average_precision, probabilities, (truth, known), truth.any(0), empty=0.0)


def mean_f1(decisions: Tensor, truth: Tensor, known: Tensor | None = None) -> float:
    """Mean F1 over the classes that a sample has or is predicted to have (bool, N x C each); 0 if there is none."""
    from torchmetrics.functional.classification import binary_f1_score

    usable = truth.any(0) | (decisions if known is None else decisions & known).any(0)
    return _mean_over(binary_f1_score, decisions.int(), (truth, known), usable, empty=0.0)


def _mean_over(
    metric: Callable[..., Tensor], answers: Tensor, truth_known: tuple[Tensor, Tensor | None], usable: Tensor,
    empty: float,
) -> float:  # fmt: skip
    truth, known = truth_known
    columns = usable.nonzero().flatten().tolist()
    rows = [slice(None) if known is None else known[:, c] for c in range(truth.shape[1])]
    values = [metric(answers[rows[c], c], truth[rows[c], c].int(), validate_args=False) for c in columns]
    return float(torch.stack(values).double().mean()) if values else empty
