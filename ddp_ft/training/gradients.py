"""What is done to the reduced gradient, once per optimizer step: penalties are added, then it is clipped."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddp_ft.config.schema import OptimConfig, RunConfig, TrainConfig
from ddp_ft.errors import UserError
from ddp_ft.models.libraries import bare_timm as timm
from ddp_ft.training.optim import undecayed


def clip(parameters: Sequence[nn.Parameter], config: TrainConfig, head: Collection[nn.Parameter] = ()) -> Tensor:
    """Bound the gradients in place: by AGC, then by value, then by norm, each if its bound is above 0.

    AGC (arXiv 2102.06171, timm's) leaves out the parameters of `head`, as the paper does with the last layer. Return
    the norm of all gradients before clipping: a scalar on the device, for which no host has waited.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = norm_before = nn.utils.get_total_norm(gradients)
    if config.clip_agc > 0:
        in_head = {id(p) for p in head}
        body = [p for p in parameters if id(p) not in in_head]
        timm.utils.adaptive_clip_grad(body, config.clip_agc)  # type: ignore[no-untyped-call]
    if config.clip_value > 0:
        nn.utils.clip_grad_value_(parameters, config.clip_value)
    if config.clip_norm > 0:
        if config.clip_agc > 0 or config.clip_value > 0:
            norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    return norm_before


class Penalties:
    """Gradients of L1, l1 |w|, and of L2-SP, l2_sp/2 |w - w0|^2 (arXiv 1802.01483), to be added once per step.

    w0 are the `anchors`, the weights that training began with; those of the head are pulled towards 0, as in the paper.
    Vectors (biases, norms) and what the model itself exempts are left alone, as by weight decay.
    """

    def __init__(
        self, module: nn.Module, head: Collection[str], config: OptimConfig, anchors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.l1, self.l2_sp = config.l1, config.l2_sp
        exempt = undecayed(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.ndim > 1 and name not in exempt}
        among = self.parameters if self.l2_sp else ()
        self.anchors = {name: (anchors or {})[name] for name in among if name not in head}

    @torch.no_grad()
    def add_to_gradients(self) -> None:
        """Add them to the gradients of the parameters that have one. Do nothing if both are 0."""
        if not (self.l1 or self.l2_sp):
            return
        learning = {name: (p, p.grad) for name, p in self.parameters.items() if p.grad is not None}
        gradients = [gradient for _, gradient in learning.values()]
        if self.l1 and gradients:
            signs = [weight.sign() for weight, _ in learning.values()]
            torch._foreach_add_(gradients, signs, alpha=self.l1)
        if self.l2_sp and gradients:
            # The difference first: it is exactly 0 if nothing has moved yet.
            moved = [w - self.anchors[name] if name in self.anchors else w for name, (w, _) in learning.items()]
            torch._foreach_add_(gradients, moved, alpha=self.l2_sp)


def check_penalties(config: RunConfig) -> None:
    """Raise UserError for a penalty that has nothing to pull towards."""
    if config.optim.l2_sp and config.model.weights == "none":
        raise UserError(
            "optim.l2_sp pulls towards the pretrained weights, but --weights is none.",
            "Leave optim.l2_sp at 0; optim.weight_decay pulls towards 0.",
        )


def digest_of_anchors(anchors: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and values of what a penalty pulls to; empty if there is none."""
    digest = hashlib.sha256()
    for name, tensor in anchors.items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if anchors else ""


def anchors_of(module: nn.Module, head: Collection[str]) -> dict[str, Tensor]:
    """Return copies of the weights outside the head that a penalty may pull at, by name; also of frozen ones, which a
    later stage may let learn."""
    return {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if name not in head and parameter.ndim > 1
    }
