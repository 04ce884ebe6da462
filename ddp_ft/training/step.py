"""One optimizer step and one evaluation pass. No logging, no files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ddp_ft.contracts import Batch, Evaluation, Task
from ddp_ft.data.micro_batches import cut
from ddp_ft.distributed.ddp import Replica
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """torch.amp's autocast for that precision; nothing for fp32."""
    dtype = AMP_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@dataclass
class Learner:
    """The parts of an optimizer step, and the step itself.

    `inputs` is what the replica is called with, from a prepared batch. `set_training` puts the modules into the mode
    they are trained in. `penalise` adds penalties to the gradient, and `clip` bounds it and gives its norm before.
    Where it `recovers`, a rank that is out of memory makes the step one that changes nothing on any rank.
    Where it `recomputes`, backward passes run layers forward again, which must not count for batch norm's statistics.
    """

    replica: nn.Module
    task: Task
    inputs: Callable[[Batch], Tensor]
    optimizer: torch.optim.Optimizer
    prepare: Callable[[Batch], Batch]
    world: World
    precision: str
    clip: Callable[[list[nn.Parameter]], Tensor]
    penalise: Callable[[], None]
    set_training: Callable[[], None]
    recovers: bool = True
    recomputes: bool = False

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == "fp16")
        self.begin()

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
        _copy_all(self._statistics, self._backup)
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
        _copy_all(self._backup, self._statistics)
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
            _copy_all(self._backup, self._statistics)
        else:
            self.optimizer.step()

    def _synchronising(self, is_last: bool) -> AbstractContextManager[object]:
        is_ddp = isinstance(self.replica, Replica)
        return self.replica.no_sync() if is_ddp and not is_last else nullcontext()  # type: ignore[operator]

    def _backward(self, batch: Batch) -> Tensor:
        batch = self.prepare(batch)
        with autocast(self.world.device, self.precision):
            outputs = self.replica(self.inputs(batch))
        loss, weight = self.task.loss(outputs, batch)
        once = [tensor.clone() for tensor in self._statistics] if self.recomputes else []
        torch.autograd.backward(self.scaler.scale(loss))
        _copy_all(once, self._statistics)
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
        self.penalise()
        return self.clip(parameters)


def _sent(values: list[float], device: torch.device) -> Tensor:
    """A float32 vector on the device, which is not waited for."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _restore_where(wanted: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(wanted, old, tensor))


def _copy_all(sources: list[Tensor], targets: list[Tensor]) -> None:
    if sources:  # torch refuses empty lists
        torch._foreach_copy_(targets, sources)


def forward_statistics(module: nn.Module) -> list[Tensor]:
    """The buffers of normalisation layers that a forward pass in training mode changes."""
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.training]
    return [buffer for layer in layers for buffer in layer.buffers()]


def batch_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Running mean and variance of every normalisation layer that keeps them, by their names in state_dict."""
    return {
        f"{name}.{kind}" if name else kind: getattr(layer, kind)
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
        for kind in ("running_mean", "running_var")
    }


@contextmanager
def averaged_statistics(module: nn.Module, world: World) -> Iterator[None]:
    """Within the block the running statistics are the mean over ranks; after it each rank has its own again.

    Restoring them keeps training independent of how often it is evaluated or saved, to the bit.
    """
    statistics = list(batch_statistics(module).values())
    own = [tensor.clone() for tensor in statistics]
    if statistics and world.size > 1:
        # In one sum: one for each of a hundred small tensors took a fifth of a step.
        _copy_all(in_parts(world.sum(in_one(statistics)).div_(world.size), statistics), statistics)
    try:
        yield
    finally:
        _copy_all(own, statistics)


def in_one(tensors: Iterable[Tensor]) -> Tensor:
    """All elements in one vector; empty for no tensors."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0)


def in_parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `in_one`: views of the vector, in the shapes of the tensors it was made of."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@dataclass
class Scorer:
    """A model and all that an evaluation pass needs.

    `module` is the bare one: DDP's forward pass would wait for ranks that have no batch. `most` is how many samples go
    through it at once, where that had to be bounded for want of memory: each rank finds it for itself.
    """

    module: nn.Module
    task: Task
    prepare: Callable[[Batch], Batch]
    world: World
    precision: str
    most: int | None = None

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """Outputs for one batch, in evaluation mode: float32 on the CPU, B x outputs. UserError if the memory is too
        small for one sample."""
        self.module.eval()
        while (outputs := self._outputs_if_they_fit(batch)) is None:
            size = min(self.most or len(batch["index"]), len(batch["index"]))
            if size == 1:
                raise UserError("Out of memory with a single picture.", "Lower --image-size, or use another device.")
            self.most = size // 2
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
        return outputs

    def _outputs_if_they_fit(self, batch: Batch) -> Tensor | None:
        try:
            return torch.cat([self._forward(part) for part in cut([batch], self.most or len(batch["index"]))])
        except torch.OutOfMemoryError:
            return None  # what the pass held goes with the exception

    def _forward(self, batch: Batch) -> Tensor:
        with autocast(self.world.device, self.precision):
            outputs: Tensor = self.module(self.task.inputs(self.prepare(batch)))
        return outputs.float().cpu()

    def collect(self, batches: Iterable[Batch], total: int) -> tuple[Tensor, Batch] | None:
        """On rank 0: outputs and records of all `total` samples in the set's order, each exactly once. Else None.

        Records are the batch's tensors without the pictures.
        """
        parts = [
            {"outputs": self.outputs(batch), **{name: t for name, t in batch.items() if name != "image"}}
            for batch in batches
        ]
        gathered = self.world.gather(parts)
        if gathered is None:
            return None
        merged = _in_order([part for rank_parts in gathered for part in rank_parts], total)
        return merged.pop("outputs"), merged

    def evaluate(self, batches: Iterable[Batch], total: int) -> Evaluation:
        """Metrics over the whole set, computed once on rank 0 from all outputs."""
        collected = self.collect(batches, total)
        metrics = self.world.from_main(lambda: self.task.metrics(*collected))  # type: ignore[misc]
        return Evaluation(metrics, *(collected or ()))


def _in_order(parts: list[Batch], total: int) -> Batch:
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = torch.argsort(merged["index"])
    merged = {name: tensor[order] for name, tensor in merged.items()}
    assert torch.equal(merged["index"], torch.arange(total)), "evaluation must see every sample exactly once"
    return merged
