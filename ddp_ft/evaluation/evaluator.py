"""Outputs of every sample once, in the order of the data set, on any number of ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, Evaluation, Task
from ddp_ft.data.micro_batches import cut
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.models.precision import autocast

# Pictures per forward pass of an evaluation, and the unit in which the set is dealt to ranks. Fixed, so that
# the numbers do not depend on the machine.
EVAL_CHUNK = 64


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
