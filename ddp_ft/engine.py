"""One optimizer step and one evaluation pass. No logging, no files."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ddp_ft.contracts import Batch, Task
from ddp_ft.distributed import World

# torch 2.15 renamed the option and warns about the old name.
_NEW_NAME, _OLD_NAME = "forward_sync_buffers", "broadcast_buffers"
_HAS_NEW_NAME = _NEW_NAME in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {_NEW_NAME if _HAS_NEW_NAME else _OLD_NAME: False}

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepSums:
    """What one step gave, summed over all ranks: scalars on the device, read only when they are logged."""

    loss: Tensor
    weight: Tensor
    grad_norm: Tensor


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """torch.amp's autocast for that precision; nothing for fp32."""
    dtype = AMP_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def replicate(module: nn.Module, world: World, distributed: bool) -> nn.Module:
    """The module as training calls it: in DistributedDataParallel under torchrun, else in DataParallel if one
    process sees several GPUs, else as it is."""
    if distributed:
        # Buffers are not broadcast: batch norm's statistics are averaged when they are needed, which loses no
        # rank's samples, and a rank without a batch would hang in that broadcast.
        device_ids = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **KEEP_BUFFERS)
    if world.device.type == "cuda" and torch.cuda.device_count() > 1:
        return DataParallel(module)
    return module


@dataclass
class Learner:
    """The parts of an optimizer step, and the step itself.

    `inputs` is what the replica is called with, from a prepared batch. `set_training` puts the modules into the mode
    they are trained in. `penalise` adds penalties to the gradient, and `clip` bounds it and gives its norm before.
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

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == "fp16")

    def step(self, micro_batches: list[Batch]) -> StepSums:
        """One optimizer step over this rank's share of the global batch.

        Backward runs on summed losses. DDP averages over ranks, so the gradient is multiplied by their number
        and divided by the weight of the whole global batch: exact for uneven shares and micro-batches.
        """
        self.set_training()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.world.device)
        for number, batch in enumerate(micro_batches, start=1):
            with self._synchronising(number == len(micro_batches)):
                sums += self._backward(batch)
        self.world.sum(sums)
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._finish_gradient(weight=sums[1])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepSums(sums[0], sums[1], grad_norm)

    def _synchronising(self, is_last: bool) -> AbstractContextManager[object]:
        is_ddp = isinstance(self.replica, DistributedDataParallel)
        return self.replica.no_sync() if is_ddp and not is_last else nullcontext()  # type: ignore[operator]

    def _backward(self, batch: Batch) -> Tensor:
        batch = self.prepare(batch)
        with autocast(self.world.device, self.precision):
            outputs = self.replica(self.inputs(batch))
        loss, weight = self.task.loss(outputs, batch)
        torch.autograd.backward(self.scaler.scale(loss))
        return torch.stack([loss.detach(), weight])

    def _finish_gradient(self, weight: Tensor) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        # A batch may weigh nothing, where weights are 0; its gradient is 0 then, and stays so.
        torch._foreach_mul_(gradients, self.world.size / weight.clamp_min(1e-12))
        self.penalise()
        return self.clip(parameters)


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
    for tensor in statistics:
        world.sum(tensor).div_(world.size)
    try:
        yield
    finally:
        for tensor, value in zip(statistics, own, strict=True):
            tensor.copy_(value)


@dataclass(frozen=True)
class Scorer:
    """A model and all that an evaluation pass needs.

    `module` is the bare one: DDP's forward pass would wait for ranks that have no batch.
    """

    module: nn.Module
    task: Task
    prepare: Callable[[Batch], Batch]
    world: World
    precision: str

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """Outputs for one batch, in evaluation mode: float32 on the CPU, B x outputs."""
        self.module.eval()
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

    def evaluate(self, batches: Iterable[Batch], total: int) -> dict[str, float]:
        """Metrics over the whole set, computed once on rank 0 from all outputs; the same on every rank."""
        collected = self.collect(batches, total)
        return self.world.from_main(lambda: self.task.metrics(*collected))  # type: ignore[misc]


def _in_order(parts: list[Batch], total: int) -> Batch:
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = torch.argsort(merged["index"])
    merged = {name: tensor[order] for name, tensor in merged.items()}
    assert torch.equal(merged["index"], torch.arange(total)), "evaluation must see every sample exactly once"
    return merged
