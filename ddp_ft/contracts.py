"""The small values and protocols that cross package borders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from ddp_ft.config.schema import RunConfig
    from ddp_ft.tasks.scored.base import ScoredSet

# A batch is a mapping of tensors whose first dimension counts samples; a value of uneven length is NAME, padded with 0
# along its second dimension, beside NAME_length. Only a source, a processor, a task and a model's call know what is in
# it, but for "weight" (float32, one a sample): a sample of weight 0 counts for nothing.
Batch = dict[str, Tensor]
# A sample as its source opens it: tensors, and what becomes one when it is known which part of it is needed.
Sample = Mapping[str, Any]
# Test-time augmentation: a prepared batch seen in several ways.
Views = Callable[[Batch], Sequence[Batch]]
# How a library's module is called with a prepared batch, and what comes of it, as tensors.
Call = Callable[[nn.Module, Batch], Any]
# Where a line for the user goes.
Say = Callable[[str], None]


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
    """Samples by index. `read` may be called in any worker process; it raises BadSample for a damaged one.

    `kind` is that of the processors that take its samples.
    """

    @property
    def kind(self) -> str:
        """ "image", ..."""

    def __len__(self) -> int:
        """How many samples there are."""

    def name(self, index: int) -> str:
        """What to call the sample in messages and tables, such as its path."""

    def read(self, index: int) -> Batch:
        """The sample's tensors without a batch dimension: what its processor and its task need."""


class LabelledSource(Source, Protocol):
    """Samples whose targets are known without reading them.

    `targets` has one row a sample: int64 (N,) for one label each, float32 (N, names) of 0 and 1 for several labels,
    float32 (N, names) for numbers, and for another kind what that says (`data.targets`). `weights` is float32 (N,), or
    None where all count the same. `read` gives what the task learns from ("target", a row of `targets`, for these
    three), and "weight" where there are weights.
    """

    targets: NDArray[Any]
    weights: NDArray[np.float32] | None


class Transform(Protocol):
    """What a loader makes of samples, in its workers if it has any. All that is random is drawn from torch's CPU
    generator, which stands at the place of the sample; a seed for whole batches is the transform's own."""

    def __call__(self, sample: Sample) -> Batch:
        """One sample's tensors, without a batch dimension. Raises BadSample."""

    def collate(self, samples: list[Batch]) -> Batch:
        """Samples as a batch."""

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """The last touch to a batch that has all of its samples, with "weight", "index" and "position" in it."""


class ToDevice(Protocol):
    """The last part of a batch's way, on the device."""

    def __call__(self, batch: Batch) -> Batch:
        """A loaded batch as a model's call and the task's loss want it; the given one is left as it is."""


class Processor(Protocol):
    """What a model wants done to its input. One package in `data/` for each `kind`: "image", ..."""

    @property
    def kind(self) -> str:
        """What it processes, by the name in `data.processors`."""

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values, for model.json; "kind" among them, but for images."""

    def configured(self, decoder: str) -> "Processor":
        """The processor for that way of decoding (data.decoder), where there is a choice; else as it is."""

    def check(self, config: "RunConfig", target_kind: str, device: torch.device) -> None:
        """UserError for settings of a run that do not go together, with targets of that kind or on that device; and for
        those of augmentation that it does not follow."""

    def pairs(self, config: "RunConfig") -> bool:
        """Whether training mixes samples with their neighbours, so that no pair of them may be parted."""

    def train_transform(self, config: "RunConfig") -> Transform:
        """What training makes of samples: augmented as the configuration says. UserError for what cannot be."""

    def eval_transform(self) -> Transform:
        """What evaluation and prediction make of samples; nothing in it is random."""

    def on_device(self, device: torch.device, channels_last: bool) -> ToDevice:
        """What brings batches to the device; `channels_last` is the memory format of what has channels."""

    def example(self, samples: int) -> Batch:
        """A batch of noise as a loader brings it, without targets: for shapes, FLOPs, compiling and graphs."""

    def viewed(self, views: str) -> "tuple[Processor, Views]":
        """For test-time augmentation: the processor that makes what is seen, and how. UserError if there is none."""

    def pixels(self, batch: Batch) -> list[NDArray[np.uint8]]:
        """What a prepared batch looks like, each sample H x W x 3; empty for what cannot be looked at."""

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        """What of a sample of a loaded batch shows whether it is odd, and its value: ("pixels", "0..255")."""

    def shape(self) -> tuple[int, ...]:
        """The size of a sample's input, as far as it is fixed: (height, width) of an image."""


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


class StorageFault(BadSample):
    """A sample that could not be read because the machine or its disks failed; another try may well succeed."""


# The phases of a run: the head alone on features, if that is asked for, then the whole recipe.
PROBE, TRAIN = "probe", "train"

# What a start of a run has come to.
DONE, STOPPED = "done", "stopped"

# One class for each sample, any number of classes, or numbers.
LABEL, LABELS, NUMBERS = "label", "labels", "numbers"


@dataclass(frozen=True)
class Schema:
    """What the data's targets are: `kind` by its name in `data.targets`; `names` those of the classes or numbers."""

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
    network ends with it, so that its input are the features and its output is the network's; None if not. `processor`
    makes what `call` calls it with.
    """

    module: nn.Module
    processor: Processor
    call: Call
    spec: Mapping[str, Any]
    head: frozenset[str]
    head_path: str | None = None


@dataclass(frozen=True)
class TaskWords:
    """How reports and model cards speak of a task.

    `names` is the plural of what its outputs are: "classes"; `verb` is between "the image" and these names. `hub_type`,
    `pipeline_tag` (None if there is none) and `tags` are for hubs of models.
    """

    names: str
    verb: str
    hub_type: str
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()


class Task(Protocol):
    """What is learned: the head's size, the loss and the metrics. One file in `tasks/` each.

    `kinds` are those of the data's targets that it can learn, its own first; `names` are those of its outputs.
    `ranks` says whether its answers are one class of several, with "probabilities" by which classes can be ranked.
    """

    name: str
    kinds: tuple[str, ...]
    words: TaskWords
    names: tuple[str, ...]
    outputs: int
    primary_metric: str
    ranks: bool

    def check(self) -> None:
        """Try what the user gave of his own code on a few samples; UserError if it does not do what it is to."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed weight of a micro-batch, two scalars; their quotient is the mean. `outputs`
        are what the model's call made of the batch.

        A mixed batch has "mix_share" (float32, B: the share of a sample's own target) and "mix_partner" (int64, B:
        whose target the rest is, by its place in the micro-batch).
        """

    def predictions(self, outputs: Any, batch: Batch) -> Batch:
        """What is kept of each sample of a batch that was evaluated: bounded in size, on the device of the outputs."""

    def records(self, batch: Batch) -> Batch:
        """What metrics need of each sample besides its prediction, from a batch as it was loaded."""

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """All metrics over a whole evaluation set (on the CPU, in the set's order); "loss" among them."""

    def higher_is_better(self, metric: str) -> bool:
        """How to compare two values of that metric; UserError if the task has no such metric."""

    def score(self, predictions: Batch, records: Batch) -> "ScoredSet | None":
        """What reports, charts and comparisons are made of, from all of a set; None if the task has nothing for them.

        UserError for predictions that are not this task's; it goes on from "what is kept is".
        """

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """The predictions of several models or views of the same samples as one: their mean."""

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """Of each sample what prediction writes, as JSON values: "class", "probability" and "probabilities" (by name),
        or "classes" (all that are there) and "probabilities", or "values" (by name)."""

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """What one of the `answers` comes to, to be compared with another model's, and how far it is from coming to
        something else, 0 to 1; (None, 1.0) where nothing is decided."""

    def columns(self) -> dict[str, type]:
        """The columns of a table of predictions: what is in each is str, float, or list (of str)."""

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """One row of such a table, from one of the `answers`."""

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """The same as text."""

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The target of a batch's sample in words, such as its labels; empty if there are no words for it."""

    def initial_bias(self) -> Tensor | None:
        """What the head's bias begins with where that is asked for (`outputs` values); None: 0."""

    def settings(self) -> dict[str, Any]:
        """JSON values from which `restore_task` makes the task again, for model.json."""


class Tracker:
    """Where metrics go. Each tracker overrides what it can record; this one records nothing."""

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Record a row of metrics of `split` ("train", "val" or "test") at a step of that phase (PROBE or TRAIN)."""

    def warn(self, step: int, text: str) -> None:
        """Record a warning."""

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Record an image, as the bytes of a PNG."""

    def pr_curve(self, tag: str, step: int, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """Record a precision-recall curve over all thresholds; `truth` and `scores` are N each."""

    def histogram(self, tag: str, step: int, values: NDArray[np.float32]) -> None:
        """Record the distribution of values; some may not be finite."""

    def graph(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Record a model's graph, traced on these inputs."""

    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text in Markdown."""

    def sync(self) -> None:
        """Make durable what was logged; may be called from another thread. Raises OSError if that fails."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Record the end of the run: its recipe, and the metrics of its best model."""

    def hang_up(self) -> None:
        """Prepare to close: no more rows will come."""

    def close(self) -> None:
        """Flush and close files."""
