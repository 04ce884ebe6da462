"""Features computed once, and batches of them: what the head is trained on while the backbone does not change."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, LabelledSource, Task
from ddp_ft.data import GlobalOrderSampler
from ddp_ft.distributed import World
from ddp_ft.engine import autocast
from ddp_ft.models.features import features as features_of


@dataclass(frozen=True)
class FeatureSet:
    """Features of a whole source, on the device: `features` float32 (N, ...); `targets` and `weights` one row each."""

    features: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: list[int]) -> Batch:
        """These samples, as the task's loss wants them."""
        rows = torch.tensor(indices, device=self.features.device)
        return {
            "features": self.features[rows],
            "target": self.targets[rows],
            "weight": self.weights[rows],
            "index": rows,
        }


def feature_inputs(batch: Batch) -> Tensor:
    """What the head is called with."""
    return batch["features"]


@dataclass(frozen=True)
class Extractor:
    """A frozen backbone and all that computing features needs; as `engine.Scorer` for outputs."""

    module: nn.Module
    head_path: str
    task: Task
    prepare: Callable[[Batch], Batch]
    world: World
    precision: str

    @torch.no_grad()
    def extract(self, batches: Iterable[Batch], source: LabelledSource) -> FeatureSet:
        """The features of all samples, on every rank; `batches` are this rank's chunks of the source.

        Each rank fills its rows of a table of zeros, and the sum over ranks is the whole: exact, since every
        row has one rank. It takes samples x features x 4 bytes on each rank. Targets and weights are those of the
        pictures that were read, as another may stand in the place of a damaged one.
        """
        self.module.eval()
        parts = [(batch["position"], self._features(batch), batch["target"], batch["weight"]) for batch in batches]
        features, targets, weights = (
            self._whole([(part[0], part[column]) for part in parts], len(source)) for column in (1, 2, 3)
        )
        return FeatureSet(features, targets, weights)

    def _whole(self, parts: list[tuple[Tensor, Tensor]], samples: int) -> Tensor:
        """All rows, on every rank and on the device, from this rank's (places, rows)."""
        like = self.world.from_main(lambda: parts[0][1][:0].cpu())
        table = torch.zeros(samples, *like.shape[1:], dtype=like.dtype, device=self.world.device)
        for places, rows in parts:
            table[places.to(table.device)] = rows.to(table.device)
        return self.world.sum(table)

    def _features(self, batch: Batch) -> Tensor:
        with autocast(self.world.device, self.precision):
            return features_of(self.module, self.head_path, self.task.inputs(self.prepare(batch))).float()


def train_batches(
    features: FeatureSet, sampler: GlobalOrderSampler, start: int, stop: int
) -> Generator[list[Batch], None, None]:
    """The whole global batch of each step from `start` to `stop`: every rank trains the same head on all of it.

    A head is so small that sharing the work would cost more than doing it, and so the bits depend on no rank.
    """
    for step in range(start, stop):
        yield [features.batch([address.index for address in sampler.global_batch(step)])]


@torch.no_grad()
def evaluate_head(head: nn.Module, features: FeatureSet, task: Task, chunk: int, precision: str) -> dict[str, float]:
    """Metrics of head and backbone over a whole set. In chunks, as evaluation on pictures is, so with its bits."""
    head.eval()
    device = features.features.device
    with autocast(device, precision):
        outputs = torch.cat([head(part).float().cpu() for part in torch.split(features.features, chunk)])
    return task.metrics(outputs, {"target": features.targets.cpu(), "weight": features.weights.cpu()})
