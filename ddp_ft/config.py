"""The one place that knows the configuration: names, types, defaults, ranges, kinds and help of all keys.

Each field of the dataclasses below is one key, reached as `section.name` by `--set` and in YAML files, and
by its own flag where it has one. A key is of one of three kinds:

- recipe: decides the result; stored with the run and compared, as requested, when the run goes on;
- machine: decides only speed, memory or what is written down; may change at any restart;
- length: how long the run is; grows by `--extend`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ddp_ft.errors import UserError, nearest
from ddp_ft.schedule import SCHEDULES

RECIPE, MACHINE, LENGTH = "recipe", "machine", "length"
Flat = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One configuration key, as `--help`, `--set` and the checks see it."""

    path: str
    type: type
    optional: bool
    default: Any
    help: str
    kind: str
    flag: str | None
    choices: tuple[str, ...] | None
    low: float | None
    above: float | None
    high: float | None

    @property
    def metavar(self) -> str:
        """What stands for the value in `--help`."""
        return "|".join(self.choices) if self.choices else {bool: "BOOL", Path: "PATH"}.get(self.type, self.type.__name__.upper())


def key(
    default: Any,
    help: str,
    *,
    kind: str = RECIPE,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field with what the rest of this module needs to know; `low` and `high` are allowed values."""
    return field(
        default=default,
        metadata={
            "help": help, "kind": kind, "flag": flag, "choices": choices, "low": low, "above": above, "high": high,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are and how they are read."""

    path: Path | None = key(None, "Folder with train/, val/ and perhaps test/, or with one folder a class.", kind=MACHINE, flag="--data")
    val_split: float = key(0.15, "Share of the pictures held back for validation where there is no val/.", flag="--val-split", above=0, high=0.9)
    workers: int | None = key(None, "Loader processes of each rank; auto: from the cores this process may use.", kind=MACHINE, flag="--workers", low=0)


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and which weights it starts from."""

    name: str | None = key(None, "timm/NAME, torchvision/NAME, NAME, or FILE.py:FACTORY.", flag="--model")
    weights: str = key("pretrained", "pretrained, none, a .safetensors or .pth file, or a run folder.", flag="--weights")
    image_size: int | None = key(None, "Side of the square the model sees, in pixels; auto: the model's own.", flag="--image-size", low=8, high=4096)


@dataclass(frozen=True)
class TrainConfig:
    """How long and in which portions."""

    epochs: int = key(3, "Passes over the training set.", kind=LENGTH, flag="--epochs", low=1)
    batch_size: int = key(32, "Images per optimizer step, over all processes.", flag="--batch-size", low=1)
    micro_batch: int | None = key(None, "Images per forward pass of one process; auto: its whole share.", kind=MACHINE, flag="--micro-batch", low=1)
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

    crop_min: float = key(0.35, "Smallest area of the random crop, as a share of the picture.", above=0, high=1)
    flip: float = key(0.5, "Probability of a horizontal flip.", low=0, high=1)


@dataclass(frozen=True)
class EvalConfig:
    """When to evaluate, and what decides which model is best."""

    every_epochs: int = key(1, "Epochs between evaluations.", kind=RECIPE, low=1)
    metric: str = key("accuracy", "The metric that decides which model is best.")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    every_steps: int = key(0, "Steps between checkpoints, besides those at each epoch's end; 0: none.", kind=MACHINE, low=0)
    every_minutes: float = key(15.0, "Minutes between checkpoints, besides those at each epoch's end; 0: none.", kind=MACHINE, low=0)
    keep: int = key(2, "How many of the newest checkpoints to keep, besides the best.", kind=MACHINE, low=1)


@dataclass(frozen=True)
class LogConfig:
    """What is written down on the way."""

    every_steps: int = key(10, "Steps between lines of metrics.", kind=MACHINE, low=1)


@dataclass(frozen=True)
class ComputeConfig:
    """On what, and in which number format."""

    device: str = key("auto", "Where to compute; auto: CUDA if there is any.", kind=MACHINE, flag="--device", choices=("auto", "cpu", "cuda"))
    precision: str = key("auto", "Number format of the forward pass; auto: bf16 on CUDA that has it, else fp32.", flag="--precision", choices=("auto", "fp32", "bf16", "fp16"))
    timeout_minutes: float = key(30.0, "How long a rank waits for the others before it gives up.", kind=MACHINE, above=0)


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


def make_config(*layers: Mapping[str, Any]) -> RunConfig:
    """The configuration that the defaults and these layers of dotted keys give; a later layer wins.

    Raises UserError for an unknown key, and for a value of the wrong type or out of range.
    """
    values: Flat = {}
    for layer in layers:
        for path, given in layer.items():
            values[path] = parse_value(find_key(path), given)
    return _assemble(values)


def _assemble(values: Flat) -> RunConfig:
    sections: dict[str, Flat] = {}
    top: Flat = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        (sections.setdefault(section, {}) if section else top)[name] = value
    hints = typing.get_type_hints(RunConfig)
    return RunConfig(**top, **{section: hints[section](**inner) for section, inner in sections.items()})


def find_key(path: str) -> Key:
    """The key of that dotted name; UserError names the nearest ones if there is none."""
    if path in KEYS:
        return KEYS[path]
    by_last_name = [known for known in KEYS if known.rpartition(".")[2] == path.rpartition(".")[2]]
    hint = f"Did you mean {', '.join(by_last_name)}?" if by_last_name else nearest(path, list(KEYS))
    raise UserError(f"Unknown configuration key '{path}'.", hint)


def parse_value(key: Key, given: Any) -> Any:
    """`given` (text, or what YAML made of it) as the key's type, checked against its choices and range."""
    if given is None or (key.optional and str(given).lower() in ("auto", "none", "null")):
        if key.optional:
            return None
        raise UserError(f"{_label(key)} needs a value ({_expected(key)}).")
    try:
        value = _convert(key.type, given)
    except (ValueError, TypeError):
        raise UserError(f"{_label(key)} = {given!r} is not {_expected(key)}.") from None
    if not _allowed(key, value):
        raise UserError(f"{_label(key)} = {given!r} is not {_expected(key)}.", nearest(str(given), list(key.choices or ())))
    return value


def _convert(wanted: type, given: Any) -> Any:
    if wanted is bool:
        if str(given).lower() not in ("true", "false"):
            raise ValueError(given)
        return str(given).lower() == "true"
    if isinstance(given, (bool, list, dict)):
        raise TypeError(given)
    if wanted is int and isinstance(given, float):
        raise TypeError(given)
    if wanted is Path:
        return Path(given).expanduser()
    return wanted(given)


def _allowed(key: Key, value: Any) -> bool:
    if key.choices is not None:
        return value in key.choices
    if key.type is float and value != value:  # NaN passes every comparison below
        return False
    return not (
        (key.low is not None and value < key.low)
        or (key.above is not None and value <= key.above)
        or (key.high is not None and value > key.high)
    )


def _label(key: Key) -> str:
    return f"{key.flag} ({key.path})" if key.flag else key.path


def _expected(key: Key) -> str:
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    parts = [names[key.type]]
    parts += [f"of at least {key.low:g}"] if key.low is not None else []
    parts += [f"above {key.above:g}"] if key.above is not None else []
    parts += [f"and at most {key.high:g}"] if key.high is not None else []
    return " ".join(parts) + (", or auto" if key.optional else "")


def parse_assignment(text: str) -> Flat:
    """'section.name=value' of `--set` as a layer; the value is read as YAML, so lists and numbers work."""
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text} is not of the form key.path=value.", "Example: --set optim.weight_decay=0.1")
    find_key(path.strip())
    try:
        return {path.strip(): yaml.safe_load(value)}
    except yaml.YAMLError:
        return {path.strip(): value}


def read_config_file(file: Path) -> Flat:
    """A YAML file of nested sections as a layer of dotted keys."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Configuration file {file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration file {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"Configuration file {file} holds no mapping of keys to values.", "Example:\noptim:\n  lr: 0.001")
    return _flatten(content)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Flat:
    flat: Flat = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        is_section = isinstance(value, dict) and path not in KEYS
        flat.update(_flatten(value, f"{path}.") if is_section else {path: value})
    return flat


def to_flat(config: RunConfig, kinds: Iterable[str] = (RECIPE, MACHINE, LENGTH)) -> Flat:
    """The values of all keys of these kinds by dotted name, as plain YAML values."""
    flat: Flat = {}
    for path, spec in KEYS.items():
        if spec.kind in kinds:
            value: Any = config
            for name in path.split("."):
                value = getattr(value, name)
            flat[path] = str(value) if isinstance(value, Path) else value
    return flat


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as a YAML file that `--config` takes back."""
    nested: dict[str, Any] = {}
    for path, value in to_flat(config).items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
