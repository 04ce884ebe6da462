"""Scores over the yes-or-no decisions of several classes, where some may be missing from the set."""

from collections.abc import Callable

import torch
from torch import Tensor

# As good as guessing: what AUROC is taken for where no class has both answers.
CHANCE = 0.5


def mean_auroc(probabilities: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve, one class against the rest, its mean over the classes (N x C each, `truth` of bool).

    Classes that all samples of the set have, or none, have no such curve and are left out; 0.5 if there is no other.
    """
    from torchmetrics.functional.classification import binary_auroc

    usable = truth.any(0) & ~truth.all(0)
    return _mean_over(binary_auroc, probabilities, truth, usable, otherwise=CHANCE)


def mean_average_precision(probabilities: Tensor, truth: Tensor) -> float:
    """Average precision, its mean over the classes that a sample of the set has; 0 if there is none."""
    from torchmetrics.functional.classification import binary_average_precision

    return _mean_over(binary_average_precision, probabilities, truth, truth.any(0), otherwise=0.0)


def mean_f1(decisions: Tensor, truth: Tensor) -> float:
    """F1, its mean over the classes that a sample has or is said to have (bool, N x C each); 0 if there is none."""
    from torchmetrics.functional.classification import binary_f1_score

    usable = truth.any(0) | decisions.any(0)
    return _mean_over(binary_f1_score, decisions.int(), truth, usable, otherwise=0.0)


def _mean_over(score: Callable[..., Tensor], answers: Tensor, truth: Tensor, usable: Tensor, otherwise: float) -> float:
    columns = usable.nonzero().flatten().tolist()
    if not columns:
        return otherwise
    values = [score(answers[:, c], truth[:, c].int(), validate_args=False) for c in columns]
    return float(torch.stack(values).double().mean())
