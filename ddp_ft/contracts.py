"""The small values and protocols that cross package borders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

# A batch is a mapping of tensors whose first dimension counts samples. Nothing outside a task or a source
# assumes what is in it, but for "weight" (float32, one a sample): a sample of weight 0 counts for nothing.
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Preprocess:
    """What a model wants its input to be. `size` is (height, width); mean and std are for values in 0..1."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json."""
        return {
            "size": list(self.size), "mean": list(self.mean), "std": list(self.std),
            "interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode,
        }  # fmt: skip

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_mapping`."""
        size = values["size"]
        return Preprocess(
            (int(size[0]), int(size[1])), tuple(values["mean"]), tuple(values["std"]),
            values["interpolation"], float(values["crop_pct"]), values["crop_mode"],
        )  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where a sample stands: which one it is, and at which place of the endless global order it is seen.

    Everything random about it is drawn from (seed, epoch, position) and so depends on neither rank nor worker.
    A `ghost` takes part in a step for the sake of its rank's collectives alone; its weight is 0.
    """

    index: int
    epoch: int
    position: int
    ghost: bool = False


class Source(Protocol):
    """Samples by index. `read` may be called in any worker process; it raises BadSample for a damaged one."""

    def __len__(self) -> int:
        """How many samples there are."""

    def name(self, index: int) -> str:
        """What to call the sample in messages and tables, such as its path."""

    def read(self, index: int) -> Batch:
        """The sample's tensors without a batch dimension: "image" (uint8, 3 x H x W) and what its task needs."""


class BadSample(Exception):
    """A sample that cannot be read. The message says which and why, in one line."""


@dataclass(frozen=True)
class Schema:
    """What a task must know of the data before it can say how large the head is."""

    classes: tuple[str, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a weights file, by name."""

    source: str
    loaded: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.source:
            return "random initial weights"
        return (
            f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.skipped)} skipped (other size), "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )


@dataclass(frozen=True)
class BuiltModel:
    """A model with its new head, and all that is needed to build it again without this package.

    `spec` is what model.json stores: library, name and the arguments of the library's own create function.
    `head` holds the names of the parameters whose shape follows the number of outputs.
    """

    module: nn.Module
    preprocess: Preprocess
    spec: Mapping[str, Any]
    head: frozenset[str]


class Task(Protocol):
    """What is learned: the head's size, the loss and the metrics. One file in `tasks/` each."""

    name: str
    outputs: int

    def inputs(self, batch: Batch) -> Tensor:
        """What the model is called with, from a batch that is on the device and normalised."""

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed weight of a micro-batch, two scalars; their quotient is the mean."""

    def metrics(self, outputs: Tensor, records: Batch) -> dict[str, float]:
        """All metrics over a whole evaluation set (CPU, float32, in the set's order); "loss" among them."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """What prediction writes for each sample."""

    def higher_is_better(self, metric: str) -> bool:
        """How to compare two values of that metric; UserError if the task has no such metric."""


class Tracker(Protocol):
    """Where metrics go. Off the main rank stands one that does nothing."""

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One row of metrics of `split` ("train", "val" or "test")."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run has ended: its recipe, and the metrics of its best model."""

    def close(self) -> None:
        """Flush and let go of files."""
