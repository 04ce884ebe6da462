"""The small values and protocols that cross package borders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

# A batch is a mapping of tensors whose first dimension counts samples. Nothing outside a task or a source
# assumes what is in it, but for "weight" (float32, one a sample): a sample of weight 0 counts for nothing.
Batch = dict[str, Tensor]
# Where a line for the user goes.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Preprocess:
    """What a model wants its input to be. `size` is (height, width); mean and std are for values in 0..1.

    `decoder` is how a JPEG comes to it: "shrink" while it is decoded, as far as the size allows, or decoded in "full".
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    decoder: str = "shrink"

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json."""
        return {
            "size": list(self.size), "mean": list(self.mean), "std": list(self.std),
            "interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode,
            "decoder": self.decoder,
        }  # fmt: skip

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_mapping`."""
        size = values["size"]
        return Preprocess(
            (int(size[0]), int(size[1])), tuple(values["mean"]), tuple(values["std"]),
            values["interpolation"], float(values["crop_pct"]), values["crop_mode"],
            values.get("decoder", "shrink"),
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


class LabelledSource(Source, Protocol):
    """Samples whose targets are known without reading them.

    `targets` has one row a sample: int64 (N,) for one label each, float32 (N, names) of 0 and 1 for several labels,
    float32 (N, names) for numbers. `weights` is float32 (N,), or None where all count the same. `read` gives
    "target" (a row of `targets`), and "weight" where there are weights.
    """

    targets: NDArray[Any]
    weights: NDArray[np.float32] | None


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a whole set: `metrics` on every rank, and on rank 0 what they were computed from.

    `predictions` and `records` are as the task makes them, N samples on the CPU in the set's order.
    """

    metrics: dict[str, float]
    predictions: Batch | None = None
    records: Batch | None = None


class BadSample(Exception):
    """A sample that cannot be read. The message says which and why, in one line."""


# The phases of a run: the head alone on features, if that is asked for, then the whole recipe.
PROBE, TRAIN = "probe", "train"

# What a start of a run has come to.
DONE, STOPPED = "done", "stopped"

# One class for each sample, any number of classes, or numbers.
LABEL, LABELS, NUMBERS = "label", "labels", "numbers"


@dataclass(frozen=True)
class Schema:
    """What the data's targets are: `kind` is LABEL, LABELS or NUMBERS; `names` those of the classes or numbers."""

    kind: str
    names: tuple[str, ...]


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
    `head` holds the names of the parameters of the new head. `head_path` is the name of the head's module if the
    network ends with it, so that its input are the features and its output is the network's; None if not.
    """

    module: nn.Module
    preprocess: Preprocess
    spec: Mapping[str, Any]
    head: frozenset[str]
    head_path: str | None = None


class Task(Protocol):
    """What is learned: the head's size, the loss and the metrics. One file in `tasks/` each.

    `kind` is what it predicts, LABEL, LABELS or NUMBERS, and `names` are those of its outputs.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    outputs: int
    primary_metric: str

    def inputs(self, batch: Batch) -> Tensor:
        """What the model is called with, from a batch that is on the device and normalised."""

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed weight of a micro-batch, two scalars; their quotient is the mean.

        A mixed batch has "mix_share" (float32, B: the share of a sample's own target) and "mix_partner" (int64, B:
        whose target the rest is, by its place in the micro-batch).
        """

    def predictions(self, outputs: Tensor, batch: Batch) -> Batch:
        """What is kept of each sample of a batch that was evaluated: bounded in size, on the device of the outputs."""

    def records(self, batch: Batch) -> Batch:
        """What metrics need of each sample besides its prediction, from a batch as it was loaded."""

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """All metrics over a whole evaluation set (on the CPU, in the set's order); "loss" among them."""

    def higher_is_better(self, metric: str) -> bool:
        """How to compare two values of that metric; UserError if the task has no such metric."""

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """The predictions of several models or views of the same samples as one: their mean."""

    def estimates(self, predictions: Batch) -> Tensor:
        """Of each sample what prediction writes, N x outputs: probabilities, or numbers in the target's units."""

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """The same with names, as JSON values: "class", "probability" and "probabilities" (by class), or "classes"
        (all that are there) and "probabilities", or "values" (by name)."""

    def columns(self) -> list[str]:
        """The names of the values of `row`."""

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """One row of a table of predictions, from one of the `answers`."""

    def initial_bias(self) -> Tensor | None:
        """What the head's bias begins with where that is asked for (`outputs` values); None: 0."""

    def settings(self) -> dict[str, Any]:
        """JSON values from which `restore_task` makes the task again, for model.json."""


class Tracker(Protocol):
    """Where metrics go. Off the main rank stands one that does nothing."""

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """One row of metrics of `split` ("train", "val" or "test") at a step of that phase (PROBE or TRAIN)."""

    def warn(self, step: int, text: str) -> None:
        """Something that a person should know of."""

    def sync(self) -> None:
        """Make durable what was logged; may come from another thread than the rest. OSError if that cannot be."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run has ended: its recipe, and the metrics of its best model."""

    def close(self) -> None:
        """Flush and let go of files."""
