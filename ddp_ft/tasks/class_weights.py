"""Weights of the classes, and of labels that are present, in the loss."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.paths import path_of
from ddp_ft.config.schema import LossConfig
from ddp_ft.config.yaml_texts import read_document, read_mapping
from ddp_ft.errors import UserError, nearest, one_line, shortened
from ddp_ft.tasks.scored.base import Floats
from ddp_ft.texts import plural

CLASS_KEY, POSITIVE_KEY = "loss.class_weights", "loss.positive_weights"
# The bound of balanced positive weights: a label seen once in 10,000 images would else outweigh all others.
LARGEST_POSITIVE = 100.0


def class_weights(settings: LossConfig, names: Sequence[str], counts: NDArray[np.int64]) -> Tensor | None:
    """Weights of the classes (float32, C), scaled so that their mean over the training samples is 1; None if not set.

    loss.class_weights is `balanced` (N / (C n)), `effective` ((1 - beta) / (1 - beta^n), arXiv 1901.05555), numbers in
    the order of the classes, {class: weight}, or a JSON or YAML file with either. `counts` are the training samples n
    of each class. The scale does not change the result: a step divides by the sum of the weights.
    UserError for any other value, and for weights that are negative, not finite, or too many or too few.
    """
    text, beta = settings.class_weights, settings.effective_beta
    if text is None:
        return None
    rules = {
        "balanced": counts.sum() / (len(names) * np.maximum(counts, 1)),
        "effective": (1 - beta) / (1 - beta ** np.maximum(counts, 1).astype(np.float64)),
    }
    values = _by_rule_or_given(CLASS_KEY, text, rules, names)
    mean = float((values * counts).sum() / counts.sum())
    if mean == 0:
        raise UserError(f"{CLASS_KEY}: all training samples have weight 0.", "At least one must be above 0.")
    return torch.tensor(values / mean, dtype=torch.float32)


def positive_weights(
    settings: LossConfig, names: Sequence[str], positives: NDArray[np.int64], samples: "int | NDArray[np.int64]"
) -> Tensor | None:
    """The weight of a present label, where an absent one has 1 (float32, C); None if not set.

    loss.positive_weights is `balanced` (absent / present, within 1/100 and 100), or as for `class_weights`. The weight
    of a label that no training sample has is 1. `samples` are those of which a label is known.
    """
    text = settings.positive_weights
    if text is None:
        return None
    ratio = (samples - positives) / np.maximum(positives, 1)
    bounded = np.clip(ratio, 1 / LARGEST_POSITIVE, LARGEST_POSITIVE)
    rules = {"balanced": np.where(positives > 0, bounded, 1.0)}
    return torch.tensor(_by_rule_or_given(POSITIVE_KEY, text, rules, names), dtype=torch.float32)


def _by_rule_or_given(key: str, text: str, rules: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    return rules[text] if text in rules else np.asarray(_given(key, text, list(rules), names), np.float64)


def _given(key: str, text: str, rules: list[str], names: Sequence[str]) -> list[float]:
    origin, content = _content(key, text, rules)
    listed = _in_order(origin, content, names) if isinstance(content, Mapping) else content
    if not isinstance(listed, list):
        raise UserError(f"{origin}: this is no list and no mapping of weights.", 'Example: {"cat": 1.0, "dog": 2.5}')
    if len(listed) != len(names):
        given, wanted = plural(len(listed), "weight"), plural(len(names), "class", "classes")
        raise UserError(f"{origin}: {given} for {wanted}.", f"In the order {shortened(names)}.")
    weights = [_checked(origin, value, name) for value, name in zip(listed, names, strict=True)]
    if not any(weights):
        raise UserError(f"{origin}: all weights are 0.", "At least one must be above 0.")
    return weights


def _content(key: str, text: str, rules: list[str]) -> tuple[str, Any]:
    """What the text gives, and where it is from: asked whether it is a mapping or a list before it counts as a file."""
    bare = text.strip().strip("[]()").strip()
    if bare.startswith("{"):
        try:
            return key, read_mapping(bare)
        except ValueError as error:
            raise UserError(f"{key} is no mapping: {one_line(error)}.", 'Example: {"cat": 1.0, "dog": 2.5}') from None
    parts = [part for part in re.split(r"[,\s]+", bare) if part]
    values = [_number(part) for part in parts]
    wrong = [part for part, value in zip(parts, values, strict=True) if isinstance(value, str)]
    if 2 * len(wrong) > len(parts) or not parts:
        return f"{key}, file {text}", _read(key, text, rules)
    if wrong:
        raise UserError(f"{key}: {shortened(wrong)} among {len(parts)} weights is no number.", _example(rules))
    return key, values


def _number(part: str) -> float | str:
    try:
        return float(part)
    except ValueError:
        return part


def _example(rules: list[str]) -> str:
    return f"Expected {', '.join(rules)}, numbers separated by commas, or a JSON or YAML file that is there."


def _read(key: str, text: str, rules: list[str]) -> Any:
    file = path_of(text)
    try:
        content = file.read_text(encoding="utf-8")
        return json.loads(content) if file.suffix.lower() == ".json" else read_document(content)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        hint = f"{nearest(text, rules)} {_example(rules)}".strip()
        raise UserError(f"{key} = '{text}' is none of its values, and no such file.", hint) from error
    except (OSError, ValueError) as error:
        reason = one_line(error) if not isinstance(error, OSError) else error.strerror
        raise UserError(
            f"{key}: {shortened([text])} cannot be read as JSON or YAML: {reason}.", _example(rules)
        ) from None


def _in_order(origin: str, content: Mapping[Any, Any], names: Sequence[str]) -> list[Any]:
    by_name = {str(name): value for name, value in content.items()}
    if unknown := sorted(by_name.keys() - set(names)):
        known = f"The classes: {shortened(names)}."
        raise UserError(f"{origin}: there is no class {shortened(unknown)}.", nearest(unknown[0], list(names)) or known)
    if missing := [name for name in names if name not in by_name]:
        raise UserError(f"{origin}: no weight for {shortened(missing)}.", "Give each class one.")
    return [by_name[name] for name in names]


def _checked(origin: str, value: Any, name: str) -> float:
    value = _number(value) if isinstance(value, str) else value  # 1e-3 is a text to YAML
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise UserError(f"{origin}: {value!r} for {name} is no weight.", "Expected a finite number of at least 0.")
    return float(value)
