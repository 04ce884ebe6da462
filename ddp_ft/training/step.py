"""One optimizer step on any split of its batch. No logging, no files."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddp_ft.config.schema import TrainConfig
from ddp_ft.contracts import Batch, Task
from ddp_ft.distributed.ddp import Replica
from ddp_ft.distributed.world import World
from ddp_ft.models.batch_norm import copy_all, forward_statistics
from ddp_ft.models.precision import autocast
from ddp_ft.training.gradients import Penalties, clip


@dataclass(frozen=True)
class StepSums:
    """What one step gave, summed over all ranks: on the device, read only when it is needed.

    `is_bad` says that the loss or the gradient was not finite, or a rank out of memory, and so that nothing was
    changed; `lacking` is the number of ranks that were out of memory, `flags` the sum of what the ranks handed in.
    """

    loss: Tensor
    weight: Tensor
    grad_norm: Tensor
    is_bad: Tensor
    lacking: Tensor
    flags: Tensor

    def numbers(self) -> Tensor:
        """All of it in one float32 vector."""
        own = [self.loss, self.weight, self.grad_norm, self.is_bad.float(), self.lacking]
        return torch.cat([torch.stack(own), self.flags])


@dataclass
class Learner:
    """The parts of an optimizer step, and the step itself. What is learned from is up to its subclasses.

    `bounds` tells how the gradient is clipped, for which `head` are the parameters of the last layer. Where it
    `recovers`, a rank that is out of memory makes the step one that changes nothing on any rank. Where it `recomputes`,
    backward passes run layers forward again, which must not count for batch norm's statistics.
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
        """A batch of the loader, as the loss wants it: on the device."""
        return batch

    def set_training(self) -> None:
        """Put the modules into the mode that they are trained in."""
        self.replica.train()

    def begin(self) -> None:
        """To be called when the replica or the mode of its modules has changed."""
        self.set_training()
        self._statistics = forward_statistics(self.replica)
        self._backup = [tensor.clone() for tensor in self._statistics]
        self._is_lacking = False

    def step(self, micro_batches: list[Batch], flags: Sequence[float] = ()) -> StepSums:
        """One optimizer step over this rank's share of the global batch; `flags` are summed over ranks on the way.

        Backward runs on summed losses, and gradients are summed over ranks and divided by the weight of the whole
        global batch: exact for uneven shares and micro-batches. After a step in which it was out of memory, a rank
        computes nothing and only lets the others finish, until `begin`.
        """
        self.set_training()
        self._forget_gradients()
        copy_all(self._statistics, self._backup)
        sums = _sent([0.0, 0.0, 0.0, *flags], self.world.device)
        if isinstance(self.replica, Replica):
            self.replica.sums.begin()
        self._is_lacking = self._is_lacking or not self._pass_through(micro_batches, sums)
        if self._is_lacking:
            return self._give_up(sums)
        self.world.sum(sums)
        is_lacking = sums[2] > 0
        self._unscale(is_lacking)
        grad_norm = self._finish_gradient(weight=sums[1])
        # 0 if both are finite, else NaN: in fewer small operations, which a step without much else consists of.
        is_bad = ((sums[0] + grad_norm) * 0 + sums[2]) != 0
        self._update(is_bad, is_lacking)
        return StepSums(sums[0], sums[1], grad_norm, is_bad, sums[2], sums[3:])

    def _pass_through(self, micro_batches: list[Batch], sums: Tensor) -> bool:
        """All forward and backward passes; False if there is not the memory for one."""
        try:
            for number, batch in enumerate(micro_batches, start=1):
                with self._synchronising(number == len(micro_batches)):
                    sums[:2].add_(self._backward(batch))
        except torch.OutOfMemoryError:
            # Statistics over all ranks' samples are exchanged in forward passes; who waits there cannot be met.
            if not self.recovers or any(isinstance(m, nn.SyncBatchNorm) for m in self.replica.modules()):
                raise
            return False  # what the passes held goes with the exception
        return True

    def _give_up(self, sums: Tensor) -> StepSums:
        """The step of a rank without a gradient. It is bad on all ranks; here at least that is known at once."""
        self._forget_gradients()
        if isinstance(self.replica, Replica):
            self.replica.sums.join()
        sums[2] = 1.0
        self.world.sum(sums)
        copy_all(self._backup, self._statistics)
        is_bad = torch.ones((), dtype=torch.bool, device=sums.device)
        return StepSums(sums[0], sums[1], torch.zeros_like(sums[0]), is_bad, sums[2], sums[3:])

    def _unscale(self, is_lacking: Tensor) -> None:
        if self.scaler.is_enabled():
            # The scaler takes no other sign of a step that must not move the weights.
            factor = torch.where(is_lacking, torch.nan, 1.0)
            torch._foreach_mul_([p.grad for p in self._parameters() if p.grad is not None], factor)
            self.scaler.unscale_(self.optimizer)

    def _update(self, is_bad: Tensor, is_lacking: Tensor) -> None:
        """Move the weights, unless the step was bad: then nothing may change, as even a zero gradient would decay them.

        Every rank has the same sums, and so decides the same.
        """
        if self.scaler.is_enabled():  # looks for what is not finite by itself
            self.scaler.step(self.optimizer)
            scale = [tensor for tensor in (self.scaler._scale, self.scaler._growth_tracker) if tensor is not None]
            before = [tensor.clone() for tensor in scale]
            self.scaler.update()
            _restore_where(is_lacking, scale, before)  # the scale was not to blame
            _restore_where(is_bad, self._statistics, self._backup)
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers look at this on the device, so that no step waits for it (as GradScaler does).
            self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
            _restore_where(is_bad, self._statistics, self._backup)
        elif bool(is_bad):  # the one place that waits for the device
            copy_all(self._backup, self._statistics)
        else:
            self.optimizer.step()

    def _synchronising(self, is_last: bool) -> AbstractContextManager[object]:
        is_ddp = isinstance(self.replica, Replica)
        return self.replica.no_sync() if is_ddp and not is_last else nullcontext()  # type: ignore[operator]

    def _backward(self, batch: Batch) -> Tensor:
        batch = self.prepare(batch)
        with autocast(self.world.device, self.precision):
            outputs = self.replica(batch)
        loss, weight = self.task.loss(outputs, batch)
        once = [tensor.clone() for tensor in self._statistics] if self.recomputes else []
        torch.autograd.backward(self.scaler.scale(loss))
        copy_all(once, self._statistics)
        return torch.stack([loss.detach(), weight])

    def _forget_gradients(self) -> None:
        for parameter in self._parameters():  # the optimizer's own way notes each call for a profiler, in 0.1 ms
            parameter.grad = None

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _finish_gradient(self, weight: Tensor) -> Tensor:
        parameters = self._parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        # A batch may weigh nothing, where weights are 0; its gradient is 0 then, and stays so.
        torch._foreach_mul_(gradients, 1 / weight.clamp_min(1e-12))
        self.penalties.add_to_gradients()
        return clip(parameters, self.bounds, self.head)


def _sent(values: list[float], device: torch.device) -> Tensor:
    """A float32 vector on the device, which is not waited for."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _restore_where(wanted: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(wanted, old, tensor))
