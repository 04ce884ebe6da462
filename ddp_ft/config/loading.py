"""From text and files to a checked configuration, and back."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from ddp_ft.config.keys import LENGTH, MACHINE, RECIPE, Key
from ddp_ft.config.schema import KEYS, RECIPES, RunConfig
from ddp_ft.config.synonyms import flag_answer
from ddp_ft.config.values import given_text, parse_value
from ddp_ft.config.yaml_texts import QUOTING, read_layer
from ddp_ft.errors import UserError, nearest, one_line

Flat = dict[str, Any]

# "none" shows the whole image, squeezed into the model's size. "light" has the keys' own defaults; a test holds that.
# "medium" is RandAugment with the magnitude of the paper and of timm's recipes; "heavy" has the policy, mixing, erasing
# of torchvision's reference recipe for training from scratch; both with larger crops than those, since images are few
# in fine-tuning. Both policies change colours themselves, so there is no jitter on top.
_NO_AUGMENTATION: Flat = {
    "augment.crop_min": 1.0, "augment.flip": 0.0, "augment.vertical_flip": 0.0, "augment.right_angles": 0.0,
    "augment.rotation": 0.0, "augment.translation": 0.0, "augment.scale": 0.0, "augment.policy": "none",
    "augment.color_jitter": 0.0, "augment.grey": 0.0, "augment.blur": 0.0, "augment.erasing": 0.0,
    "augment.mixup": 0.0, "augment.cutmix": 0.0,
}  # fmt: skip
_LIGHT: Flat = {**_NO_AUGMENTATION, "augment.crop_min": 0.6, "augment.flip": 0.5}
_MEDIUM: Flat = {**_LIGHT, "augment.crop_min": 0.35, "augment.policy": "randaugment", "augment.erasing": 0.1}
_HEAVY: Flat = {
    **_MEDIUM, "augment.crop_min": 0.2, "augment.policy": "trivialaugment", "augment.mixup": 0.2, "augment.cutmix": 1.0,
}  # fmt: skip
AUGMENT_PRESETS = {"none": _NO_AUGMENTATION, "light": _LIGHT, "medium": _MEDIUM, "heavy": _HEAVY}

AUTO = "auto"
PRESET = "augment.preset"
RECIPE_FOLDER = Path(__file__).parent / "recipes"


def make_config(
    *layers: Mapping[str, Any],
    recipe: str | None = None,
    tuned: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration that follows from the defaults and these layers of dotted keys; a later layer wins.

    The recipe or augmentation preset that a layer names is right below that layer. `recipe` is what `auto` became; it
    is below all layers, and counts only if none of them names another. `tuned` are measured values, for those of their
    keys that the layers leave open; `begun` are the settings of an earlier start, whose recipe may have said otherwise.

    Raises UserError for an unknown key, and for a value of the wrong type or out of range.
    """
    parsed = [_parse_layer(layer) for layer in layers]
    values: Flat = {}
    for layer in _with_presets(_with_recipe(parsed, recipe, begun or {})):
        values.update(layer)
    nested = nest(values | {path: value for path, value in (tuned or {}).items() if is_open(layers, path)})
    hints = typing.get_type_hints(RunConfig)
    sections = {name: hints[name](**nested.pop(name)) for name in list(nested) if dataclasses.is_dataclass(hints[name])}
    return RunConfig(**sections, **nested)


def is_open(layers: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether the layers leave that key to us: none names it, or the last one that does says auto."""
    given = [layer[path] for layer in layers if path in layer]
    return not given or given[-1] is None or str(given[-1]).lower() == AUTO


def asks_for_measuring(layers: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether the last layer that names the key says auto explicitly."""
    return any(path in layer and layer[path] is not None for layer in layers) and is_open(layers, path)


def _parse_layer(layer: Mapping[str, Any]) -> Flat:
    return {path: parse_value(find_key(path), given) for path, given in layer.items()}


def _last_naming(layers: list[Flat], path: str) -> int | None:
    return next((number for number in reversed(range(len(layers))) if path in layers[number]), None)


def _with_recipe(layers: list[Flat], resolved: str | None, begun: Mapping[str, Any]) -> list[Flat]:
    place = _last_naming(layers, "recipe")
    name = AUTO if place is None else layers[place]["recipe"]
    if name == AUTO:
        place, name = 0, resolved
    if name is None:
        return layers
    said = {path: begun.get(path, value) for path, value in read_recipe(name).items()}
    return [*layers[:place], said, *layers[place:]]


def read_recipe(name: str) -> Flat:
    """The settings of one of the package's recipes, or of one that it had, as a layer."""
    folder = RECIPE_FOLDER if name in RECIPES else RECIPE_FOLDER / "former"
    layer = _parse_layer(read_config_file(folder / f"{name}.yaml"))
    assert all(KEYS[path].kind == RECIPE for path in layer), name
    return layer


def _with_presets(layers: list[Flat]) -> list[Flat]:
    place = _last_naming(layers, PRESET)
    return layers if place is None else [*layers[:place], AUGMENT_PRESETS[layers[place][PRESET]], *layers[place:]]


def nest(flat: Mapping[str, Any]) -> Flat:
    """Dotted keys as the sections of a YAML file."""
    nested: Flat = {}
    for path, value in flat.items():
        section, _, name = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def find_key(path: str) -> Key:
    """The key of that dotted name; UserError names the nearest ones if there is none."""
    if path in KEYS:
        return KEYS[path]
    name = path.rpartition(".")[2]
    by_last_name = [known for known in KEYS if known.rpartition(".")[2] == name]
    hint = f"Did you mean {', '.join(by_last_name)}?" if by_last_name else flag_answer(name) or nearest(path, [*KEYS])
    raise UserError(f"Unknown configuration key '{path}'.", hint)


def parse_assignment(text: str) -> Flat:
    """'section.name=value' of `--set` as a layer; the value is read as the key's type, and a text as it stands."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text} is not of the form key.path=value.", "Example: --set optim.weight_decay=0.1")
    key = find_key(name.strip())
    # With a blank before the =, the one after it is no part of the value either.
    return {key.path: given_text(key, value.strip() if name != name.rstrip() else value)}


def read_config_file(file: Path) -> Flat:
    """A YAML file of nested sections as a layer of dotted keys."""
    try:
        return read_layer(file.read_text(encoding="utf-8"), KEYS)
    except OSError as error:
        near = nearest(
            file.name, sorted(each.name for each in file.absolute().parent.glob("*.y*ml")), folder=file.parent
        )
        raise UserError(f"Configuration file {file} cannot be read: {error.strerror}.", near) from None
    except UserError as error:
        raise UserError(f"Configuration file {file} {error.message}", error.hint) from None
    except ValueError as error:
        raise UserError(f"Configuration file {file} is not YAML: {one_line(error)}.", QUOTING) from None


def to_flat(config: RunConfig, kinds: Iterable[str] = (RECIPE, MACHINE, LENGTH)) -> Flat:
    """The values of all keys of these kinds by dotted name, as plain YAML values."""
    return {path: _plain(attrgetter(path)(config)) for path, key in KEYS.items() if key.kind in kinds}


def value_text(path: str, value: Any) -> str:
    """A key's value as people read it; of None what the key calls it, auto or none."""
    return KEYS[path].null if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as a YAML file for `--config`."""
    return yaml.safe_dump(nest(to_flat(config)), sort_keys=False, allow_unicode=True)
