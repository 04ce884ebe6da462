"""The predictions of every sample once, in the order of the data set, on any number of ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, Call, Evaluation, Task, ToDevice, Views
from ddp_ft.data.batch import chosen, cut, joined, on_cpu
from ddp_ft.distributed.device import is_out_of_memory
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.models.precision import autocast


@dataclass
class Scorer:
    """A model and all that an evaluation pass needs.

    `module` is not in DDP, whose forward pass would wait for ranks that have no batch. `views` makes several batches of
    one, whose predictions are combined. `most`: how many samples fit into memory at once, which each rank finds for
    itself; None: all that were tried.
    """

    module: nn.Module
    call: Call
    task: Task
    prepare: ToDevice
    world: World
    precision: str
    views: Views | None = None
    most: int | None = None

    @torch.no_grad()
    def predictions(self, batch: Batch) -> Batch:
        """Return the task's predictions for one batch, in evaluation mode; on the CPU. UserError if the memory is too
        small for one sample."""
        self.module.eval()
        while (found := self._predictions_if_they_fit(batch)) is None:
            size = min(self.most or len(batch["index"]), len(batch["index"]))
            if size == 1:
                hint = "Use another device (--device cpu), or train with smaller ones (--image-size, data.max_length)."
                raise UserError("Out of memory with a single sample.", hint)
            self.most = size // 2
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
        return found

    def _predictions_if_they_fit(self, batch: Batch) -> Batch | None:
        try:
            return joined([self._predicted(part) for part in cut([batch], self.most or len(batch["index"]))])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None  # what the pass held goes with the exception

    def _predicted(self, batch: Batch) -> Batch:
        prepared = self.prepare(batch)
        seen = [prepared] if self.views is None else self.views(prepared)
        found = [self.task.predictions(self._forward(each), each) for each in seen]
        return on_cpu(found[0] if len(found) == 1 else self.task.combine(found))

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """Return the network's own outputs for one batch, in evaluation mode: float32 on the CPU, B x outputs."""
        self.module.eval()
        outputs: Tensor = self._forward(self.prepare(batch))
        return outputs.float().cpu()

    def _forward(self, batch: Batch) -> Any:
        with autocast(self.world.device, self.precision):
            return self.call(self.module, batch)

    def collect(self, batches: Iterable[Batch], total: int) -> tuple[Batch, Batch] | None:
        """Return on rank 0 predictions and records of all `total` samples in the set's order, each once; else None."""
        parts = [(self.predictions(batch), self.task.records(batch), batch["index"]) for batch in batches]
        gathered = self.world.gather(parts)
        if gathered is None:
            return None
        predictions, records, indices = zip(*(part for rank_parts in gathered for part in rank_parts), strict=True)
        index, order = torch.cat(indices).sort()
        assert torch.equal(index, torch.arange(total)), "evaluation must see every sample exactly once"
        return chosen(joined(predictions), order), chosen(joined(records), order)

    def evaluate(self, batches: Iterable[Batch], total: int) -> Evaluation:
        """Return the metrics over the whole set, computed once on rank 0 from all predictions."""
        collected = self.collect(batches, total)
        metrics = self.world.from_main(lambda: self.task.metrics(*collected))  # type: ignore[misc]
        return Evaluation(metrics, *(collected or ()))
