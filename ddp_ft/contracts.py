"""The values and protocols that several packages share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddp_ft.texts import plural

if TYPE_CHECKING:
    from ddp_ft.config.data import DataConfig
    from ddp_ft.config.schema import AdapterConfig, RunConfig
    from ddp_ft.tasks.scored.base import ScoredSet

# Tensors by name, whose first dimension counts samples. A value of uneven length is NAME, padded with 0 along its 2nd
# dimension, with NAME_length (int64, B). Only the source, the processor, the task and the model's call know the names,
# except three that the loader adds: "weight" (float32, B; a sample of weight 0 changes nothing), "index" and "position"
# (int64, B). One sample's tensors have the same type, without the first dimension.
Batch = dict[str, Tensor]
# A sample as its source opens it: tensors, and what becomes a tensor once it is known which part of it is needed.
Sample = Mapping[str, Any]
# Test-time augmentation: several views of a prepared batch.
Views = Callable[[Batch], Sequence[Batch]]
NO_VIEWS = "none"
# Calls a library's module with a prepared batch, and returns its outputs as tensors.
Call = Callable[[nn.Module, Batch], Any]
# Prints a line for the user.
Log = Callable[[str], None]
# The content of a file of that name beside model.json. Raises OSError if it is not there.
Kept = Callable[[str], bytes]


def nothing_kept(name: str) -> bytes:
    """The files of a model that has only model.json."""
    raise FileNotFoundError(2, "No such file", name)


@dataclass(frozen=True)
class Address:
    """The sample at a position of the endless global order, by its `index` in the source.

    Everything random about it is drawn from (seed, epoch, position), so it depends on neither rank nor worker.
    A `ghost` only lets its rank take part in the collectives of a step; its weight is 0.
    """

    index: int
    epoch: int
    position: int
    ghost: bool = False


class Source(Protocol):
    """Samples by index. `kind` is that of the processors that take them: "image", ..."""

    @property
    def kind(self) -> str:
        """As in `data.processors`."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The sample's name in messages and tables, such as its path."""

    def read(self, index: int) -> Batch:
        """The tensors that processor and task need, without a batch dimension; in any worker process. Raises BadSample
        if the sample is damaged."""


class LabelledSource(Source, Protocol):
    """Samples whose targets are known without reading them.

    `targets` has one row for each sample: int64 (N,) class numbers, float32 (N, names) of 0 and 1 for several labels,
    float32 (N, names) numbers, or what another kind in `data.targets` defines. `weights` is float32 (N,), None if all
    are 1. `read` returns what the task learns from ("target", a row of `targets`, for these three), and "weight" if
    there are weights.
    """

    targets: NDArray[Any]
    weights: NDArray[np.float32] | None


class Transform(Protocol):
    """Turns samples into batches, in the loader's workers if it has any. A sample draws from torch's CPU generator,
    which is seeded for it; what whole batches draw has a seed of the transform's own."""

    def __call__(self, sample: Sample) -> Batch:
        """One sample's tensors, without a batch dimension. Raises BadSample."""

    def collate(self, samples: list[Batch]) -> Batch:
        """Return the samples as a batch."""

    def finish(self, batch: Batch, addresses: Sequence[Address]) -> Batch:
        """Return a complete batch (with "weight", "index" and "position") and, added to it, what pairs of it draw."""


class ToDevice(Protocol):
    """Prepares loaded batches on the device."""

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch as the model's call and the task's loss take it; the given one is not changed."""


class Processor(Protocol):
    """Prepares samples as a model takes them. One package in `data/` for each `kind`: "image", ..."""

    @property
    def kind(self) -> str:
        """As in `data.processors`."""

    def to_mapping(self) -> dict[str, Any]:
        """JSON values for model.json; "kind" among them, except for images."""

    def files(self) -> Mapping[str, bytes]:
        """What a model folder holds for it beside model.json, by name; empty if that is all."""

    def configured(self, data: "DataConfig") -> "Processor":
        """The processor that follows these keys; the same if it has no choice."""

    def measure(self, data: "DataConfig", source: Source) -> dict[str, Any]:
        """What it has to know of the training set, as JSON values for plan.json, with perhaps a "note" for the start;
        empty if nothing. UserError for a setting that cannot be followed."""

    def fitted(self, inputs: Mapping[str, Any]) -> "Processor":
        """The processor that knows what `measure` returned."""

    def check(self, config: "RunConfig", target_kind: str, device: torch.device) -> None:
        """Raise UserError for settings that contradict each other, or do not suit it, such targets or that device."""

    def pairs(self, config: "RunConfig") -> bool:
        """Whether training mixes neighbours, so that shares and micro-batches are cut between pairs."""

    def train_transform(self, config: "RunConfig") -> Transform:
        """The transform for training, with the configured augmentation. UserError if it cannot be made."""

    def eval_transform(self) -> Transform:
        """The transform for evaluation and prediction; nothing in it is random."""

    def packing(self) -> "Packing | None":
        """What makes tensors that both transforms then return as they are; None if they are made anew in each epoch."""

    def volume(self, batch: Batch) -> tuple[int, int] | None:
        """Of a loaded batch, how many values its samples have (tokens), and how many with the padding; None if none is
        padded."""

    def on_device(self, device: torch.device, channels_last: bool) -> ToDevice:
        """What prepares batches on the device; `channels_last` is the memory format of values with channels."""

    def example(self, samples: int) -> Batch:
        """A batch of noise as a loader returns it, without targets: for shapes, FLOPs, compiling and graphs."""

    def viewed(self, views: str) -> "tuple[Processor, Views]":
        """For test-time augmentation, the processor of the views' input, and the views. UserError if it has none."""

    def pixels(self, batch: Batch) -> list[NDArray[np.uint8]]:
        """A prepared batch as images, each H x W x 3; empty for what cannot be displayed."""

    def texts(self, batch: Batch) -> list[str]:
        """A prepared batch as texts; empty for what cannot be read."""

    def extent(self, batch: Batch, place: int) -> tuple[str, str]:
        """A property of a loaded batch's sample that reveals an odd one, and its value: ("pixels", "0..255")."""

    def shape(self) -> tuple[int, ...]:
        """The fixed sizes of a sample's input: (height, width) of an image."""


class Packing(Protocol):
    """Makes samples' tensors many at a time, to be kept on disk: for a processor whose transforms draw nothing, and
    take longer than reading what they made."""

    @property
    def measure(self) -> str:
        """The name of the values of uneven length by which samples are long or short: "tokens"."""

    def key(self) -> str:
        """A hash of all that the tensors depend on besides the samples."""

    def abridged(self, sample: Sample) -> Sample:
        """What it reads of a sample."""

    def content(self, sample: Sample) -> bytes:
        """The same as bytes, which differ if the tensors may."""

    def pack(self, samples: Sequence[Sample | None]) -> Mapping[str, NDArray[Any]]:
        """Of abridged samples what the transform would return, but for their labels: arrays of N rows, or NAME with the
        values of all samples in sequence and NAME_length (N). None stands for a sample that cannot be read, and becomes
        anything."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a whole set, and on rank 0 the task's `predictions` and `records` that they were computed from:
    N samples on the CPU, in the set's order."""

    metrics: dict[str, float]
    predictions: Batch | None = None
    records: Batch | None = None


class BadSample(Exception):
    """A sample that cannot be read. The message says which and why, in one line."""


class StorageFault(BadSample):
    """A sample that could not be read because the machine or its disks failed; another try may succeed."""


# The phases of a run: the probe (the head alone on features), if configured, then the training.
PROBE, TRAIN = "probe", "train"
# How a start of a run ended.
DONE, STOPPED = "done", "stopped"
# Kinds of targets: one class for each sample, any number of classes, numbers, or a tag for each of its words.
LABEL, LABELS, NUMBERS, WORD_TAGS = "label", "labels", "numbers", "tags"
# What a model's outputs are of: a whole sample, or each word of a text.
SAMPLE, WORD = "sample", "word"


@dataclass(frozen=True)
class Schema:
    """The kind of the data's targets, by its name in `data.targets`, and the names of its classes or numbers."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor when a weights file was loaded, by name; `notes`: how the tensors were found in it;
    `base`: of a model with an adapter the SHA-256 of the weights that this is on."""

    source: str
    loaded: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    base: str = ""

    def __str__(self) -> str:
        if not self.source:
            return "random initial weights"
        counts = (
            f"{self.source}: {plural(len(self.loaded), 'tensor')} loaded, {len(self.skipped)} skipped (other size), "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )
        return "; ".join([counts, *self.notes])


@dataclass(frozen=True)
class Adapter:
    """The adapter of a model: its settings, the kinds of its `layers` by path (those of `models.adapters.layers`), and
    those `left_out` that were meant too, with the reason."""

    config: "AdapterConfig"
    layers: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        config = self.config
        forms = [*(["rsLoRA"] if config.rslora else []), *(["DoRA"] if config.dora else [])]
        kind = f"{config.name} ({' and '.join(forms)})" if forms else config.name
        more = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"{kind} of rank {config.rank} on {plural(len(self.layers), 'layer')} ({config.targets}){more}"


@dataclass(frozen=True)
class BuiltModel:
    """A model with its new head, and all that is needed to build it again without this package.

    `processor` makes the batches that `call` calls `module` with. `spec` is what model.json stores: library, name and
    the arguments of the library's own create function. `head` are the names of the new head's parameters. `head_path`
    names the head's module if the head's output is the network's output, and so its input the features; else None.
    `unused` are the names of the parameters that learn, but that the forward pass does not use; `least` is the fewest
    samples of a forward pass in training; `ends_in` is "softmax" or "sigmoid" if its outputs are probabilities. These
    are found when it is prepared for training. `rate_factors` multiply the learning rates of single parameters, by
    name (`optim.relative`); empty: all learn alike. `adapter` is what learns in place of the pretrained weights, and
    `base` are the names of these weights, which never change then; empty without an adapter.
    """

    module: nn.Module
    processor: Processor
    call: Call
    spec: Mapping[str, Any]
    head: frozenset[str]
    head_path: str | None = None
    unused: frozenset[str] = frozenset()
    least: int = 1
    ends_in: str = ""
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    adapter: Adapter | None = None
    base: frozenset[str] = frozenset()


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

    `kinds` of targets are those that it can learn, its own first; `names` are those of its outputs. `can_rank`:
    its answers are one class of several, with "probabilities" by which classes can be ranked. `unit` is what the
    model's outputs are of.
    """

    name: str
    kinds: tuple[str, ...]
    words: TaskWords
    names: tuple[str, ...]
    outputs: int
    primary_metric: str
    can_rank: bool
    unit: str

    def check(self) -> None:
        """Try the user's own code on a few samples; UserError if it breaks its contract."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed weight of a micro-batch, two scalars, from the `outputs` of the model's call.

        A mixed batch has "mix_share" (float32, B: the share of a sample's own target) and "mix_partner" (int64, B:
        the place in the micro-batch of the sample that has the rest).
        """

    def predictions(self, outputs: Any, batch: Batch) -> Batch:
        """What evaluation keeps of each sample of a batch: bounded in size, on the device of the outputs."""

    def records(self, batch: Batch) -> Batch:
        """What metrics need of each sample besides its prediction, from a batch as it was loaded."""

    def metrics(self, predictions: Batch, records: Batch) -> dict[str, float]:
        """All metrics over a whole evaluation set (on the CPU, in the set's order); "loss" among them."""

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of that metric is better; UserError if the task has no such metric."""

    def scored_set(self, predictions: Batch, records: Batch) -> "ScoredSet | None":
        """The scored set for reports, charts and comparisons, from a whole set; None if the task has nothing for them.

        UserError for predictions of another task; its message continues "what is kept is".
        """

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """The mean of the predictions of several models or views of the same samples."""

    def answers(self, predictions: Batch) -> list[dict[str, Any]]:
        """What prediction writes of each sample, as JSON values: "class", "probability" and "probabilities" (by name),
        or "classes" (all that are there) and "probabilities", "values" (by name), or "entities" (each with "type",
        "start", "end" and "probability")."""

    def decision(self, answer: Mapping[str, Any]) -> tuple[Any, float]:
        """What one of the `answers` decides, to compare with another model's, and its margin to another decision, 0 to
        1; (None, 1.0) if nothing is decided."""

    def deciding_at(self, thresholds: Sequence[float]) -> "Task":
        """The task by which a label is there from these probabilities on, one for each name; UserError if it has no
        thresholds."""

    def columns(self) -> dict[str, type]:
        """The columns of a table of predictions, and their types: str, float, or list (of str)."""

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """One row of such a table, from one of the `answers`."""

    def row(self, answer: Mapping[str, Any]) -> list[str]:
        """The same row as texts."""

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The target of a batch's sample in words, such as its labels; empty if there are no words for it."""

    def initial_bias(self) -> Tensor | None:
        """The initial value of the head's bias, if configured (`outputs` values); None: 0."""

    def settings(self) -> dict[str, Any]:
        """JSON values for model.json, from which `restore_task` makes the task again."""
