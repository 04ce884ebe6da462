"""From text and files to a checked configuration, and back."""

import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ddp_ft.config.keys import LENGTH, MACHINE, RECIPE, Key
from ddp_ft.config.schema import KEYS, RunConfig
from ddp_ft.errors import UserError, nearest

# "none" shows the whole image, squeezed into the model's size. "light" is what the keys' own defaults say; a test
# holds that. "medium" is RandAugment at the magnitude of the paper and of timm's recipes, and "heavy" the policy,
# mixing and erasing of torchvision's reference recipe for training from scratch; both with larger crops than those,
# as images are few where one fine-tunes. Both policies change colours themselves, so there is no jitter on top.
AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "none": {
        "augment.crop_min": 1.0, "augment.flip": 0.0, "augment.policy": "none", "augment.color_jitter": 0.0,
        "augment.erasing": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "light": {
        "augment.crop_min": 0.6, "augment.flip": 0.5, "augment.policy": "none", "augment.color_jitter": 0.0,
        "augment.erasing": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "medium": {
        "augment.crop_min": 0.35, "augment.flip": 0.5, "augment.policy": "randaugment", "augment.color_jitter": 0.0,
        "augment.erasing": 0.1, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "heavy": {
        "augment.crop_min": 0.2, "augment.flip": 0.5, "augment.policy": "trivialaugment", "augment.color_jitter": 0.0,
        "augment.erasing": 0.1, "augment.mixup": 0.2, "augment.cutmix": 1.0,
    },
}  # fmt: skip

Flat = dict[str, Any]

AUTO = "auto"
PRESET = "augment.preset"
RECIPE_FOLDER = Path(__file__).parent / "recipes"


def make_config(
    *layers: Mapping[str, Any], recipe: str | None = None, tuned: Mapping[str, Any] | None = None
) -> RunConfig:
    """The configuration that the defaults and these layers of dotted keys give; a later layer wins.

    What a layer names as its recipe or its augmentation's preset stands right below that layer. `recipe` is what
    `auto` became; it stands below all layers, and counts only if none of them names another. `tuned` is what was
    measured: it holds for those of its keys that the layers leave open.

    Raises UserError for an unknown key, and for a value of the wrong type or out of range.
    """
    parsed = [_parse_layer(layer) for layer in layers]
    values: Flat = {}
    for layer in _with_presets(_with_recipe(parsed, recipe)):
        values.update(layer)
    return _assemble(values | {path: value for path, value in (tuned or {}).items() if is_open(layers, path)})


def is_open(layers: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether the layers leave it to us what that key becomes: none names it, or the last one that does says auto."""
    given = [layer[path] for layer in layers if path in layer]
    return not given or given[-1] is None or str(given[-1]).lower() == AUTO


def asks_for_measuring(layers: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether the last layer that names the key says auto in so many words."""
    return any(path in layer and layer[path] is not None for layer in layers) and is_open(layers, path)


def _parse_layer(layer: Mapping[str, Any]) -> Flat:
    return {path: parse_value(find_key(path), given) for path, given in layer.items()}


def _with_recipe(layers: list[Flat], resolved: str | None) -> list[Flat]:
    naming = [number for number, layer in enumerate(layers) if "recipe" in layer]
    place = naming[-1] if naming else 0
    name = layers[place]["recipe"] if naming else AUTO
    if name == AUTO:
        place, name = 0, resolved
    return layers if name is None else [*layers[:place], read_recipe(name), *layers[place:]]


def read_recipe(name: str) -> Flat:
    """The settings of one of the package's recipes, as a layer."""
    layer = _parse_layer(read_config_file(RECIPE_FOLDER / f"{name}.yaml"))
    assert all(KEYS[path].kind == RECIPE for path in layer), name
    return layer


def _with_presets(layers: list[Flat]) -> list[Flat]:
    naming = [number for number, layer in enumerate(layers) if PRESET in layer]
    if not naming:
        return layers
    place = naming[-1]
    return [*layers[:place], AUGMENT_PRESETS[layers[place][PRESET]], *layers[place:]]


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
    if key.choices and isinstance(given, bool):  # what YAML makes of true
        given = str(given).lower()
    try:
        value = _convert(key.type, given)
    except (ValueError, TypeError):
        raise UserError(f"{_label(key)} = {given!r} is not {_expected(key)}.") from None
    if not _allowed(key, value):
        raise UserError(
            f"{_label(key)} = {given!r} is not {_expected(key)}.",
            nearest(str(given), list(key.choices or ())),
        )
    return value


def _convert(wanted: type, given: Any) -> Any:
    if wanted is bool:
        if str(given).lower() not in ("true", "false"):
            raise ValueError(given)
        return str(given).lower() == "true"
    if wanted is dict:
        return _to_mapping(given)
    if wanted is tuple:
        return tuple(float(each) for each in (given if isinstance(given, (list, tuple)) else str(given).split(",")))
    if wanted is str and isinstance(given, (list, tuple)):
        return ",".join(map(str, given))
    if isinstance(given, (bool, list, tuple, dict)):
        raise TypeError(given)
    if wanted is int and isinstance(given, float):
        raise TypeError(given)
    if wanted is Path:
        return Path(given).expanduser()
    return wanted(given)


def _to_mapping(given: Any) -> dict[str, Any]:
    mapping = given if isinstance(given, Mapping) else yaml.safe_load(str(given))
    if not isinstance(mapping, Mapping):
        raise TypeError(given)
    return {str(name): value for name, value in mapping.items()}  # as JSON has it: its names are texts


def _allowed(key: Key, value: Any) -> bool:
    if key.choices is not None:
        return value in key.choices
    if key.type is tuple:
        return all(_in_range(key, each) for each in value)
    return key.type not in (int, float) or _in_range(key, value)


def _in_range(key: Key, value: float) -> bool:
    if value != value:  # NaN passes every comparison below
        return False
    return not (
        (key.low is not None and value < key.low)
        or (key.above is not None and value <= key.above)
        or (key.high is not None and value > key.high)
    )


def _label(key: Key) -> str:
    return f"{key.flag} ({key.path})" if key.flag else key.path


_TYPE_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path",
    tuple: "a list of numbers", dict: "a mapping such as {name: value}",
}  # fmt: skip


def _expected(key: Key) -> str:
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    parts = [_TYPE_NAMES[key.type]]
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
        others = sorted(each.name for each in file.absolute().parent.glob("*.y*ml"))
        near = nearest(file.name, others)
        raise UserError(f"Configuration file {file} cannot be read: {error.strerror}.", near) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration file {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"Configuration file {file} holds no mapping of keys to values.", "Example:\noptim:\n  lr: 0.001"
        )
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
            flat[path] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as a YAML file that `--config` takes back."""
    nested: dict[str, Any] = {}
    for path, value in to_flat(config).items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
