"""One optimizer step on any split of its batch. No logging, no files."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.config.schema import TrainConfig
from ddp_ft.contracts import Batch, Task
from ddp_ft.distributed.ddp import Replica
from ddp_ft.distributed.device import is_out_of_memory
from ddp_ft.distributed.world import World
from ddp_ft.models.batch_norm import copy_all, forward_statistics, is_synchronised
from ddp_ft.models.precision import autocast
from ddp_ft.training.gradients import Penalties, clip

# Places in the vector that is summed over ranks, after the loss and its weight: ranks that ran out of memory, and ranks
# whose gradients were not those that DDP expected; then the caller's flags.
_OOM, _ODD, _OWN_SUMS = 2, 3, 4


@dataclass(frozen=True)
class StepSums:
    """The result of one step, summed over ranks: tensors on the device, all but `flags` 0-dim.

    `is_bad` (bool): the loss or the gradient was not finite, or a rank gave up; the update was skipped. `oom_ranks`:
    how many ran out of memory. `odd_ranks`: how many had other gradients than DDP expected. `flags` (F,): float32, as
    handed to `Learner.step`.
    """

    loss: Tensor
    weight: Tensor
    grad_norm: Tensor
    is_bad: Tensor
    oom_ranks: Tensor
    odd_ranks: Tensor
    flags: Tensor

    def numbers(self) -> Tensor:
        """All fields in one float32 vector."""
        own = [self.loss, self.weight, self.grad_norm, self.is_bad.float(), self.oom_ranks, self.odd_ranks]
        return torch.cat([torch.stack(own), self.flags])


@dataclass
class Learner:
    """The parts of an optimizer step, and the step itself.

    `bounds`: how the gradient is clipped; `head`: the parameters of the last layer, for AGC. `recovers`: if a rank runs
    out of memory, the step changes nothing on any rank. `recomputes`: backward passes run layers forward again, which
    must not count for batch norm's statistics.
    """

    replica: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    world: World
    precision: str
    bounds: TrainConfig
    penalties: Penalties
    head: Sequence[nn.Parameter] = ()
    recovers: bool = field(default=True, kw_only=True)
    recomputes: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.begin()

    def prepare(self, batch: Batch) -> Batch:
        """Return a batch of the loader as the model and the loss take it: on the device."""
        return batch

    def set_training(self) -> None:
        """Put the modules into the mode in which they are trained."""
        self.replica.train()

    def begin(self) -> None:
        """Prepare for steps; call it whenever the replica or the mode of its modules has changed."""
        self.set_training()
        self._statistics = forward_statistics(self.replica)
        self._backup = [tensor.clone() for tensor in self._statistics]
        self._given_up: int | None = None

    def step(self, micro_batches: list[Batch], flags: Sequence[float] = ()) -> StepSums:
        """Take an optimizer step over this rank's share of the global batch; `flags` are summed over ranks with it.

        Backward runs on summed losses, and gradients are summed over ranks and divided by the weight of the whole
        global batch: exact for uneven shares and micro-batches. A rank that gave up, since it ran out of memory or had
        other gradients than DDP expected, computes nothing until `begin`, and only lets the others finish.
        """
        self.set_training()
        self._forget_gradients()
        copy_all(self._statistics, self._backup)
        begun = torch.tensor([0.0] * _OWN_SUMS + [*flags], pin_memory=self.world.device.type == "cuda")
        sums = begun.to(self.world.device, non_blocking=True)  # nothing waits for it
        if isinstance(self.replica, Replica):
            self.replica.sums.begin()
        if self._given_up is None:
            self._given_up = self._run_passes(micro_batches, sums)
        if self._given_up is not None:
            return self._give_up(sums, self._given_up)
        self.world.sum(sums)
        given_up = sums[_OOM] + sums[_ODD]
        self._unscale(sums[0], given_up)
        grad_norm = self._finish_gradient(weight=sums[1])
        # 0 if both are finite, else NaN: in fewer small operations, which a step without much else consists of.
        is_bad = ((sums[0] + grad_norm) * 0 + given_up) != 0
        self._update(is_bad, given_up)
        return StepSums(sums[0], sums[1], grad_norm, is_bad, sums[_OOM], sums[_ODD], sums[_OWN_SUMS:])

    def _run_passes(self, micro_batches: list[Batch], sums: Tensor) -> int | None:
        """Run all forward and backward passes. Return why this rank gives up, as the place of it in `sums`; None if it
        does not."""
        try:
            for number, batch in enumerate(micro_batches, start=1):
                with nullcontext() if number == len(micro_batches) else self.unsynchronised():
                    sums[:2].add_(self.backward(batch))
        except RuntimeError as error:
            # SyncBatchNorm's forward passes wait for all ranks, and this one cannot take part any more.
            if not is_out_of_memory(error) or not self.recovers or is_synchronised(self.replica):
                raise
            return _OOM  # what the passes held goes with the exception
        is_odd = isinstance(self.replica, Replica) and not self.replica.went_as_expected()
        return _ODD if is_odd else None

    def _give_up(self, sums: Tensor, why: int) -> StepSums:
        """Finish the step without a gradient of this rank; it is bad on all ranks."""
        self._forget_gradients()
        if isinstance(self.replica, Replica):
            self.replica.sums.join()
        sums[why] = 1.0
        self.world.sum(sums)
        copy_all(self._backup, self._statistics)
        is_bad, norm = torch.ones((), dtype=torch.bool, device=sums.device), torch.zeros_like(sums[0])
        return StepSums(sums[0], sums[1], norm, is_bad, sums[_OOM], sums[_ODD], sums[_OWN_SUMS:])

    def _unscale(self, loss: Tensor, given_up: Tensor) -> None:
        """Undo the scaling of the loss; `given_up`: how many ranks gave up."""
        if self.scaler.is_enabled():
            # Only a gradient that is not finite makes the scaler skip the update, and that of an infinite loss may be
            # finite: where a logit overflows to -inf, it is that of the probability 0.
            factor = torch.where((loss * 0 + given_up) != 0, torch.nan, 1.0)
            torch._foreach_mul_([p.grad for p in self._parameters() if p.grad is not None], factor)
            self.scaler.unscale_(self.optimizer)

    def _update(self, is_bad: Tensor, given_up: Tensor) -> None:
        """Update the weights, unless the step was bad: even a zero gradient would decay them. Every rank has the same
        sums, and so decides the same."""
        if self.scaler.is_enabled():  # it looks for what is not finite itself
            self.scaler.step(self.optimizer)
            scale = [tensor for tensor in (self.scaler._scale, self.scaler._growth_tracker) if tensor is not None]
            before = [tensor.clone() for tensor in scale]
            self.scaler.update()
            _restore_where(given_up > 0, scale, before)  # the scale was not to blame
            _restore_where(is_bad, self._statistics, self._backup)
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers read this on the device, so that no step waits for it (GradScaler does the same).
            self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
            _restore_where(is_bad, self._statistics, self._backup)
        elif bool(is_bad):  # the one place that waits for the device
            copy_all(self._backup, self._statistics)
        else:
            self.optimizer.step()

    def unsynchronised(self) -> AbstractContextManager[object]:
        """Within the block backward passes do not reduce gradients over ranks."""
        return self.replica.no_sync() if isinstance(self.replica, Replica) else nullcontext()

    def forward(self, prepared: Batch) -> Any:
        """Return the model's outputs for a prepared batch, in the run's precision."""
        with autocast(self.world.device, self.precision):
            return self.replica(prepared)

    def backward(self, batch: Batch) -> Tensor:
        """Add a micro-batch's gradients to those of the parameters; return its (loss, weight), float32 (2,)."""
        batch = self.prepare(batch)
        loss, weight = self.task.loss(self.forward(batch), batch)
        once = [tensor.clone() for tensor in self._statistics] if self.recomputes else []
        torch.autograd.backward(self.scaler.scale(loss))
        copy_all(once, self._statistics)
        return torch.stack([loss.detach(), weight])

    def _forget_gradients(self) -> None:
        for parameter in self._parameters():  # optimizer.zero_grad() records each call for the profiler, in 0.1 ms
            parameter.grad = None

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _finish_gradient(self, weight: Tensor) -> Tensor:
        parameters = self._parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        # A batch whose weights are all 0 has a gradient of 0, which stays so.
        torch._foreach_mul_(gradients, 1 / weight.clamp_min(1e-12))
        self.penalties.add_to_gradients()
        return clip(parameters, self.bounds, self.head)


def _restore_where(mask: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(mask, old, tensor))
