"""Features in place of images: batches of them for training, and the head's evaluation."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, Evaluation, Task
from ddp_ft.data.batch import cut, joined, on_cpu
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.models.precision import autocast

# Multiplications of a head's forward pass up to which its step is faster in one thread than in several.
ONE_THREAD = 2**26


@dataclass(frozen=True)
class FeatureSet:
    """Features of a whole source: `views` float32 (N, ...) each, on the device or mapped from the disk; `targets` and
    `weights` one row each, on the device."""

    views: tuple[Tensor, ...]
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor, epoch: int = 0) -> Batch:
        """Return the samples at these positions (int64, on the CPU) as the task's loss takes them.

        In epoch e sample i is seen in view (e + i) mod views: each sample in all its views in turn, and each batch in a
        mixture of views.
        """
        device = self.targets.device
        rows = indices.to(device)
        return {
            "features": self._rows(indices, epoch).to(device),
            "target": self.targets[rows],
            "weight": self.weights[rows],
            "index": rows,
        }

    def all_samples(self) -> Batch:
        """Return all samples in their order, as evaluation sees them: in the first view."""
        return {"features": self.views[0], "target": self.targets, "weight": self.weights}

    def _rows(self, indices: Tensor, epoch: int) -> Tensor:
        where = indices.to(self.views[0].device)
        if len(self.views) == 1:
            return self.views[0][where]
        numbers = (where + epoch) % len(self.views)
        rows = self.views[0].new_empty(len(where), *self.views[0].shape[1:])
        for number, view in enumerate(self.views):
            seen = (numbers == number).nonzero().flatten()
            rows[seen] = view[where[seen]]
        return rows


@contextmanager
def one_thread(enabled: bool = True) -> Iterator[None]:
    """Within the block torch computes in one thread, if `enabled`."""
    before = torch.get_num_threads()
    if enabled:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_small(head: nn.Module, batch_size: int) -> bool:
    """Return whether a step of this head is fastest in one thread: on busy cores two took 15 times as long."""
    return batch_size * sum(parameter.numel() for parameter in head.parameters()) <= ONE_THREAD


def train_batches(
    features: FeatureSet, sampler: GlobalOrderSampler, start: int, stop: int, in_one_thread: bool
) -> Generator[list[Batch], None, None]:
    """Yield the whole global batch of each step from `start` to `stop`: every rank trains the same head on all of it.

    A head is so small that sharing the work would cost more than doing it; so the bits depend on no rank. From the
    first batch until it is closed torch computes in one thread, if asked.
    """
    with one_thread(in_one_thread):
        for step in range(start, stop):
            yield [features.batch(sampler.global_indices(step), step // sampler.steps_per_epoch)]


@torch.no_grad()
def evaluate_head(head: nn.Module, features: FeatureSet, task: Task, precision: str) -> Evaluation:
    """Evaluate the head over a whole set: in the chunks of an evaluation on images, and so with its bits."""
    head.eval()
    device = features.targets.device
    with autocast(device, precision), one_thread(is_small(head, EVAL_CHUNK)):
        batches = cut([features.all_samples()], EVAL_CHUNK)
        parts = [task.predictions(head(batch["features"].to(device)), batch) for batch in batches]
    predictions = on_cpu(joined(parts))
    records = on_cpu(task.records(features.all_samples()))
    return Evaluation(task.metrics(predictions, records), predictions, records)
