"""The one place that knows the configuration: names, types, defaults, ranges, kinds and help of all keys.

Each field of the dataclasses below is one key, reached as `section.name` by `--set` and in YAML files, and
by its own flag where it has one.
"""

import dataclasses
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import LENGTH, MACHINE, RECIPE, Key, key
from ddp_ft.schedule import SCHEDULES


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are and how they are read."""

    path: Path | None = key(
        None,
        "Folder with train/, val/ and perhaps test/, or with one folder a class.",
        kind=MACHINE,
        flag="--data",
    )
    val_split: float = key(
        0.15,
        "Share of the pictures held back for validation where there is no val/.",
        flag="--val-split",
        above=0,
        high=0.9,
    )
    workers: int | None = key(
        None,
        "Loader processes of each rank; auto: from the cores this process may use.",
        kind=MACHINE,
        flag="--workers",
        low=0,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and which weights it starts from."""

    name: str | None = key(None, "timm/NAME, torchvision/NAME, NAME, or FILE.py:FACTORY.", flag="--model")
    weights: str = key(
        "pretrained", "pretrained, none, a .safetensors or .pth file, or a run folder.", flag="--weights"
    )
    image_size: int | None = key(
        None,
        "Side of the square the model sees, in pixels; auto: the model's own.",
        flag="--image-size",
        low=8,
        high=4096,
    )


@dataclass(frozen=True)
class TrainConfig:
    """How long and in which portions."""

    epochs: int = key(3, "Passes over the training set.", kind=LENGTH, flag="--epochs", low=1)
    batch_size: int = key(32, "Images per optimizer step, over all processes.", flag="--batch-size", low=1)
    micro_batch: int | None = key(
        None,
        "Images per forward pass of one process; auto: its whole share.",
        kind=MACHINE,
        flag="--micro-batch",
        low=1,
    )
    clip_norm: float = key(1.0, "Largest norm of the gradient; 0: no clipping.", low=0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its rates."""

    name: str = key("adamw", "Any optimizer that timm knows.", flag="--optimizer")
    lr: float = key(1e-3, "Peak learning rate.", flag="--lr", above=0)
    weight_decay: float = key(0.05, "Weight decay; never on norms and biases.", low=0)
    head_lr_scale: float = key(10.0, "The new head learns at this multiple of the rate.", above=0)
    momentum: float = key(0.9, "Momentum, for the optimizers that have one.", low=0, high=1)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes from step to step."""

    name: str = key("cosine", "Shape of the learning rate after the warm-up.", flag="--schedule", choices=SCHEDULES)
    warmup: float = key(0.1, "Share of all steps in which the rate rises to its peak.", low=0, high=1)
    final_factor: float = key(0.0, "The last rate, as a multiple of the peak.", low=0, high=1)


@dataclass(frozen=True)
class LossConfig:
    """What training minimises."""

    label_smoothing: float = key(0.1, "Share of the target spread over the other classes.", low=0, high=0.99)


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are varied."""

    crop_min: float = key(0.6, "Smallest area of the random crop, as a share of the picture.", above=0, high=1)
    flip: float = key(0.5, "Probability of a horizontal flip.", low=0, high=1)


@dataclass(frozen=True)
class EvalConfig:
    """When to evaluate, and what decides which model is best."""

    every_epochs: int = key(1, "Epochs between evaluations.", kind=RECIPE, low=1)
    metric: str = key("accuracy", "The metric that decides which model is best.")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    every_steps: int = key(
        0, "Steps between checkpoints, besides those at each epoch's end; 0: none.", kind=MACHINE, low=0
    )
    every_minutes: float = key(
        15.0, "Minutes between checkpoints, besides those at each epoch's end; 0: none.", kind=MACHINE, low=0
    )
    keep: int = key(2, "How many of the newest checkpoints to keep, besides the best.", kind=MACHINE, low=1)


@dataclass(frozen=True)
class LogConfig:
    """What is written down on the way."""

    every_steps: int = key(10, "Steps between lines of metrics.", kind=MACHINE, low=1)


@dataclass(frozen=True)
class ComputeConfig:
    """On what, and in which number format."""

    device: str = key(
        "auto",
        "Where to compute; auto: CUDA if there is any.",
        kind=MACHINE,
        flag="--device",
        choices=("auto", "cpu", "cuda"),
    )
    precision: str = key(
        "auto",
        "Number format of the forward pass; auto: bf16 on CUDA that has it, else fp32.",
        flag="--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    timeout_minutes: float = key(
        30.0, "How long a rank waits for the others before it gives up.", kind=MACHINE, above=0
    )


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as asked for. Facts learned later (classes, steps) live elsewhere and are never written back."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    task: str = key("auto", "What is learned; auto: from the data.", flag="--task", choices=("auto", "single-label"))
    seed: int = key(0, "Of everything that is drawn.", flag="--seed", low=0, high=2**31 - 1)


def _make_key(path: str, declared: Any, spec: "dataclasses.Field[Any]") -> Key:
    is_optional = typing.get_origin(declared) is types.UnionType
    base = next(t for t in typing.get_args(declared) if t is not type(None)) if is_optional else declared
    assert spec.default is not MISSING, path
    return Key(path, base, is_optional, spec.default, **spec.metadata)


def _all_keys() -> dict[str, Key]:
    found = {}
    for name, declared in typing.get_type_hints(RunConfig).items():
        if not dataclasses.is_dataclass(declared):
            found[name] = _make_key(name, declared, RunConfig.__dataclass_fields__[name])
            continue
        hints = typing.get_type_hints(declared)
        for spec in dataclasses.fields(declared):
            path = f"{name}.{spec.name}"
            found[path] = _make_key(path, hints[spec.name], spec)
    return found


KEYS: dict[str, Key] = _all_keys()
