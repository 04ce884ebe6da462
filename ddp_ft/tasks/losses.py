"""Losses of single samples, by name, and their sum over a micro-batch.

A loss returns one value for each sample, which does not depend on other samples, so its sum over a global batch is the
same on any number of processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddp_ft.config.forms import check_loss
from ddp_ft.config.schema import LossConfig
from ddp_ft.contracts import Batch
from ddp_ft.errors import UserError
from ddp_ft.plugins import is_reference


@dataclass(frozen=True)
class LossChoice:
    """A loss by `name`, one of LOSSES or FILE.py:CLASS, with its parameters."""

    name: str
    focal_gamma: float = 2.0
    huber_delta: float = 1.0

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json."""
        return asdict(self)

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "LossChoice":
        """The inverse of `to_mapping`."""
        return LossChoice(values["name"], float(values["focal_gamma"]), float(values["huber_delta"]))


def choose_loss(config: LossConfig, task: str, fitting: Sequence[str]) -> LossChoice:
    """The configured loss, or the first that fits; UserError for one that does not fit the task."""
    name = fitting[0] if config.name == "auto" else config.name
    if name in fitting or is_reference(name):
        return LossChoice(name, config.focal_gamma, config.huber_delta)
    expected = f"For {task}: {', '.join(fitting)}, or FILE.py:CLASS."
    check_loss(name, expected)
    raise UserError(f"--loss (loss.name) = '{name}' does not fit the task {task}.", expected)


def weighted_sum(
    losses: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, target: Tensor, weight: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The summed loss and the summed weight of a micro-batch, from `losses` of single samples, B each.

    A mixed sample counts as two: its own, with `mix_share` of its weight, and its partner, with the rest of the
    partner's weight (arXiv 1710.09412). For losses linear in the target that is the loss of the mixed target.
    """
    if "mix_share" not in batch:
        return (losses(outputs, target) * weight).sum(), weight.sum()
    share, partner = batch["mix_share"], batch["mix_partner"]
    own, other = share * weight, (1 - share) * weight[partner]
    total = losses(outputs, target) * own + losses(outputs, target[partner]) * other
    return total.sum(), (own + other).sum()


def single_label_losses(choice: LossChoice, outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Losses (B) of logits (B x classes) for class numbers (int64, B).

    Smoothing spreads that share of the target over all classes, as torch.nn.functional.cross_entropy does; soft_f1
    has none. bce is the sum over one-vs-all decisions, as in timm's BinaryCrossEntropy(sum_classes=True).
    """
    if choice.name == "cross_entropy":
        return F.cross_entropy(outputs, target, reduction="none", label_smoothing=smoothing)
    if choice.name == "focal":
        terms = _focal_terms(outputs, choice.focal_gamma)
        own = terms.gather(1, target.unsqueeze(1)).squeeze(1)
        return (1 - smoothing) * own + smoothing * terms.mean(1)
    shares = F.one_hot(target, outputs.shape[1]).to(outputs.dtype)
    if choice.name == "soft_f1":
        return soft_f1(torch.softmax(outputs, 1), shares, count=0.0)
    assert choice.name == "bce", choice.name
    shares = shares * (1 - smoothing) + smoothing / outputs.shape[1]
    return F.binary_cross_entropy_with_logits(outputs, shares, reduction="none").sum(1)


def _focal_terms(outputs: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p of each class's softmax p (arXiv 1708.02002, without alpha), B x classes."""
    log_p = torch.log_softmax(outputs, 1)
    # Kept above 0, at which the slope of the power is infinite for gamma below 1.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    return -(rest**gamma) * log_p


def multi_label_terms(choice: LossChoice, outputs: Tensor, targets: Tensor, positive: Tensor | float) -> Tensor:
    """Losses of each label (B x labels) of logits for targets from 0 to 1; `positive` is the weight of a present one.

    focal multiplies the cross-entropy by (1 - probability of the right answer)^gamma, as
    torchvision.ops.sigmoid_focal_loss without alpha; a target between 0 and 1 is a mixture of both answers.
    """
    present, absent = F.logsigmoid(outputs), F.logsigmoid(-outputs)
    gamma = choice.focal_gamma if choice.name == "focal" else 0.0
    found = -positive * targets * present * torch.exp(gamma * absent)
    return found - (1 - targets) * absent * torch.exp(gamma * present)


def soft_f1(probabilities: Tensor, targets: Tensor, count: float) -> Tensor:
    """1 - F1 of each sample (B), with probabilities in place of decisions (soft Dice, arXiv 1606.04797).

    2 sum(p t) / (sum(p) + sum(t)) over the classes of one sample, not of the batch. `count` is added to numerator and
    denominator, so that samples without any label have a gradient. With a softmax and one label it is 1 - p.
    """
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + count) / (probabilities.sum(1) + targets.sum(1) + count)


def regression_losses(choice: LossChoice, outputs: Tensor, targets: Tensor) -> Tensor:
    """Losses (B), the mean over the numbers of a sample; outputs and targets (B x numbers) are standardised."""
    if choice.name == "mse":
        return F.mse_loss(outputs, targets, reduction="none").mean(1)
    if choice.name == "l1":
        return F.l1_loss(outputs, targets, reduction="none").mean(1)
    assert choice.name == "huber", choice.name
    return F.huber_loss(outputs, targets, reduction="none", delta=choice.huber_delta).mean(1)
