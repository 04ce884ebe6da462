"""The one place that knows the configuration: names, types, defaults, ranges, kinds and help of all keys.

Each field of the dataclasses below, and of those in `runtime`, is one key: `section.name` in `--set` and YAML files.
"""

import dataclasses
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from ddp_ft.config.data import DataConfig as DataConfig
from ddp_ft.config.keys import Key, key, length_key, machine_key
from ddp_ft.config.runtime import CheckpointConfig, ComputeConfig, EmaConfig, EvalConfig, LogConfig
from ddp_ft.config.synonyms import FORMER_RECIPES
from ddp_ft.config.tasks import TASKS

SCHEDULES = ("constant", "step", "multistep", "cosine", "linear", "polynomial", "onecycle", "plateau")
RECIPES = ("linear_probe", "lp_ft", "fine_tune", "full", "lora")
# Keys without a default that every run needs.
REQUIRED = ("data.path", "model.name")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and which weights it starts from."""

    name: str | None = key(
        None,
        "timm/NAME, torchvision/NAME, NAME, hf-hub:OWNER/NAME, local-dir:FOLDER, or FILE.py:FACTORY.",
        flag="--model",
        names_file=True,
    )
    weights: str = key(
        "pretrained",
        "pretrained, none, a file (safetensors, or what torch.save wrote), a folder of the Hugging Face hub, or a "
        "run folder.",
        flag="--weights",
        names_file=True,
    )
    image_size: int | None = key(
        None,
        "Side of the square the model sees, in pixels; auto: the model's own.",
        flag="--image-size",
        low=8,
        high=4096,
        null="auto",
    )
    batch_norm: str = key(
        "train",
        "Statistics of batch norm: each process's own, kept as loaded, or those of the whole batch (CUDA).",
        choices=("train", "frozen", "sync"),
    )
    drop_path: float | None = key(None, "Stochastic depth; auto: the model's own.", low=0, high=0.99, null="auto")


@dataclass(frozen=True)
class HeadConfig:
    """The head on top of the pretrained model."""

    name: str = key("linear", "linear, mlp:WIDTH,WIDTH... or FILE.py:CLASS.", flag="--head", names_file=True)
    dropout: float | None = key(None, "Dropout before the head; auto: the model's own.", low=0, high=0.99, null="auto")
    activation: str = key("gelu", "Between the layers of an mlp.", choices=("gelu", "relu", "silu", "tanh"))
    norm: str = key("none", "After each hidden layer of an mlp.", choices=("none", "batch", "layer"))
    bias: str = key(
        "zero", "How the last bias begins: 0, or the logarithm of the classes' shares.", choices=("zero", "prior")
    )


@dataclass(frozen=True)
class FreezeConfig:
    """Which parts of the model are frozen."""

    parts: str = key(
        "none",
        "none, backbone, stages:K (-K: all but the last K), norm, type:Conv2d, regex:PATTERN; several joined by +.",
        flag="--freeze",
    )
    schedule: dict[str, Any] | None = key(
        None, "Gradual unfreezing: {epochs done: what is frozen from then on}, such as {0: backbone, 2: none}."
    )
    cache_features: bool = key(
        False, "Train the head on features that are computed once; needs freeze.parts = backbone."
    )
    views: int = key(
        1, "Number of views of each training image: one as in evaluation, and views - 1 augmented ones.", low=1
    )
    cache_dir: Path | None = machine_key(None, "Where features are kept; auto: in the run folder.", null="auto")
    cache_gb: float = machine_key(64.0, "Most GiB of features to compute and keep; 0: in memory alone.", low=0)


@dataclass(frozen=True)
class AdapterConfig:
    """Small matrices that learn in place of the pretrained weights."""

    name: str = key(
        "none", "Small matrices that learn in place of the weights.", flag="--adapter", choices=("none", "lora")
    )
    rank: int = key(8, "Rows of an adapter's matrices: how much it can change.", low=1)
    alpha: float | None = key(
        None, "What an adapter adds counts alpha / rank times; auto: twice the rank.", above=0, null="auto"
    )
    dropout: float = key(0.0, "Dropout of an adapter's input.", low=0, high=0.99)
    targets: str = key(
        "all-linear",
        "Layers with an adapter: all-linear (convolutions where there is none), or an expression searched in paths.",
    )
    rslora: bool = key(False, "What an adapter adds counts alpha / root of rank times (rsLoRA, arXiv 2312.03732).")
    dora: bool = key(False, "The length of each output's weights learns too (DoRA, arXiv 2402.09353).")


@dataclass(frozen=True)
class ProbeConfig:
    """A first phase that trains the head alone, on features computed once."""

    epochs: int = key(0, "Passes of the head over the features before the epochs; 0: none.", low=0)
    lr: float = key(3e-3, "Peak learning rate of the probe (AdamW, cosine).", above=0)
    weight_decay: float = key(0.0, "Weight decay of the probe.", low=0)
    batch_size: int = key(64, "Features per optimizer step of the probe.", low=1)


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and in which batches."""

    epochs: int | None = length_key(
        None, "Passes over the data; auto: by its size.", flag="--epochs", low=1, null="auto"
    )
    batch_size: int = key(32, "Images per optimizer step, over all processes.", flag="--batch-size", low=1)
    micro_batch: int | None = machine_key(
        None,
        "Images per forward pass of one process; auto: measured at the start; none: its whole share.",
        flag="--micro-batch",
        low=1,
    )
    max_steps: int | None = length_key(
        None, "Most optimizer steps; the schedule spans what is left of the epochs.", flag="--max-steps", low=1
    )
    max_minutes: float | None = length_key(
        None, "Most minutes of training, turned into steps once, by measuring.", flag="--max-minutes", above=0
    )
    clip_norm: float = key(1.0, "Largest norm of the gradient; 0: no clipping.", flag="--clip-norm", low=0)
    clip_value: float = key(0.0, "Largest value in the gradient; 0: no clipping.", low=0)
    max_bad_steps: int = machine_key(
        20,
        "How many steps in a row may have a loss or gradient that is not finite before the run ends; they are skipped.",
        low=0,
    )
    clip_agc: float = key(0.0, "Largest gradient of a unit, as a share of its weights' norm (AGC); 0: none.", low=0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rates."""

    name: str = key("adamw", "Any optimizer that timm knows.", flag="--optimizer")
    lr: float | None = key(
        None,
        "Peak learning rate; auto: 1e-3; 1e-4 for models without batch norm whose rates are not relative.",
        flag="--lr",
        above=0,
        null="auto",
    )
    weight_decay: float = key(0.05, "Weight decay; never on norms and biases.", flag="--weight-decay", low=0)
    head_lr_scale: float = key(10.0, "The new head learns at this multiple of the rate.", above=0)
    layer_decay: float = key(
        1.0,
        "Each block learns at this multiple of the next one's rate; 1: all alike.",
        flag="--layer-decay",
        above=0,
        high=1,
    )
    relative: bool = key(
        False,
        "Rates in proportion to the size of the pretrained weights: as given where the root mean square of a tensor is "
        "0.1, twice that where it is 0.2.",
    )
    momentum: float = key(0.9, "Momentum, for the optimizers that have one.", low=0, high=1)
    betas: tuple[float, ...] | None = key(None, "Betas, for the optimizers that have them.", low=0, high=1)
    options: dict[str, Any] | None = key(None, "Further arguments of the optimizer, by its own names.")
    overrides: dict[str, Any] | None = key(
        None, "{regex of parameter names: {lr_scale: ..., weight_decay: ...}}; the first match wins."
    )
    l1: float = key(0.0, "Pull of every weight towards 0 (L1).", low=0)
    l2_sp: float = key(0.0, "Pull of every pretrained weight towards its initial value (L2-SP).", low=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes from step to step."""

    name: str = key("cosine", "Shape of the learning rate after the warm-up.", flag="--schedule", choices=SCHEDULES)
    warmup: float = key(0.1, "Share of all steps in which the rate rises to its peak.", flag="--warmup", low=0, high=1)
    final_factor: float = key(0.0, "The last rate, as a multiple of the peak.", low=0, high=1)
    every_epochs: float = key(1.0, "step: epochs between two falls of the rate.", above=0)
    milestones: tuple[float, ...] | None = key(None, "multistep: epochs at which the rate falls.", low=0)
    gamma: float = key(0.1, "step, multistep, plateau: what the rate is multiplied by.", above=0, high=1)
    power: float = key(2.0, "polynomial: its exponent.", above=0)
    patience: int = key(1, "plateau: evaluations without a better one before the rate falls.", low=0)


@dataclass(frozen=True)
class LossConfig:
    """What training minimises."""

    name: str = key(
        "auto",
        "auto (by task), cross_entropy, focal, bce, soft_f1, mse, l1, huber, or FILE.py:CLASS.",
        flag="--loss",
        names_file=True,
    )
    label_smoothing: float = key(0.1, "Share of the target spread over all classes.", low=0, high=0.99)
    class_weights: str | None = key(
        None,
        "balanced, effective, numbers separated by commas, or a JSON or YAML file; none: all count the same.",
        flag="--class-weights",
        lists=True,
        names_file=True,
    )
    effective_beta: float = key(0.999, "Beta of class_weights = effective (arXiv 1901.05555).", low=0, high=0.999999)
    positive_weights: str | None = key(
        None,
        "multi-label: what a present label counts; balanced, or numbers separated by commas; none: 1.",
        lists=True,
        names_file=True,
    )
    focal_gamma: float = key(2.0, "Exponent of the focal loss (arXiv 1708.02002).", low=0)
    huber_delta: float = key(1.0, "Where the Huber loss becomes linear, in deviations of the target.", above=0)


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    preset: str = key(
        "light",
        "Sets the keys of this section that are not given: none, light, medium or heavy.",
        flag="--augment",
        choices=("none", "light", "medium", "heavy"),
    )
    crop_min: float = key(0.6, "Smallest area of the random crop, as a share of the image.", above=0, high=1)
    flip: float = key(0.5, "Probability of a horizontal flip.", low=0, high=1)
    vertical_flip: float = key(0.0, "Probability of a flip upside down.", low=0, high=1)
    right_angles: float = key(0.0, "Probability of a turn by 90, 180 or 270 degrees.", low=0, high=1)
    rotation: float = key(0.0, "Largest rotation to either side, in degrees.", low=0, high=180)
    translation: float = key(0.0, "Largest shift, as a share of the side.", low=0, high=1)
    scale: float = key(0.0, "Largest change of size; 0.2: by a factor of 0.8 to 1.2.", low=0, high=0.9)
    policy: str = key(
        "none", "Random distortions of shape and colour.", choices=("none", "randaugment", "trivialaugment")
    )
    magnitude: int = key(9, "Strength of randaugment.", low=0, high=30)
    color_jitter: float = key(0.0, "Largest change of brightness, contrast and saturation.", low=0, high=1)
    grey: float = key(0.0, "Probability that colours become grey.", low=0, high=1)
    blur: float = key(0.0, "Probability of a Gaussian blur.", low=0, high=1)
    erasing: float = key(0.0, "Probability of a random erased rectangle.", low=0, high=1)
    mixup: float = key(0.0, "Alpha of mixup (arXiv 1710.09412); 0: none.", flag="--mixup", low=0)
    cutmix: float = key(0.0, "Alpha of cutmix (arXiv 1905.04899); 0: none.", flag="--cutmix", low=0)
    transform: str | None = key(
        None,
        "Code of your own that is called with each training image after all other augmentation: FILE.py:NAME.",
        names_file=True,
        code="FILE.py:NAME",
    )


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as requested. Facts learned later (classes, steps) are elsewhere and never written back."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    recipe: str = key(
        "auto",
        "Settings below those you give; auto: by size of the data and model.",
        flag="--recipe",
        choices=("auto", *RECIPES),
        former=tuple(FORMER_RECIPES),
    )
    task: str = key("auto", "What is learned; auto: by the data.", flag="--task", choices=("auto", *TASKS))
    seed: int = key(0, "Seed of all random draws.", flag="--seed", low=0, high=2**31 - 1)


def _make_key(path: str, declared: Any, spec: "dataclasses.Field[Any]") -> Key:
    is_optional = typing.get_origin(declared) is types.UnionType
    base = next(t for t in typing.get_args(declared) if t is not type(None)) if is_optional else declared
    base = typing.get_origin(base) or base  # tuple[float, ...] is a tuple here
    assert spec.default is not MISSING, path
    return Key(path, base, is_optional, spec.default, **spec.metadata)


def _all_keys() -> dict[str, Key]:
    found: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}
    for name, declared in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(declared):
            hints = typing.get_type_hints(declared)
            found |= {f"{name}.{spec.name}": (hints[spec.name], spec) for spec in dataclasses.fields(declared)}
        else:
            found[name] = (declared, RunConfig.__dataclass_fields__[name])
    return {path: _make_key(path, declared, spec) for path, (declared, spec) in found.items()}


KEYS: dict[str, Key] = _all_keys()
