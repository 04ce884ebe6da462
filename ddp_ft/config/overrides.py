"""Entries of `optim.overrides`: rates and weight decays of parameters, by regular expressions of their names."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddp_ft.errors import UserError, known_names


@dataclass(frozen=True)
class Override:
    """An entry of optim.overrides, for the parameters in whose name `pattern` is found; `label` is its name in
    messages."""

    pattern: "re.Pattern[str]"
    label: str
    lr_scale: float | None
    weight_decay: float | None


def parse_override(pattern: str, values: Any) -> Override:
    """An entry of optim.overrides. UserError for a pattern or values that cannot be read."""
    label, known = f"optim.overrides '{pattern}'", ["lr_scale", "weight_decay"]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{label} is not a regular expression: {error}.") from None
    if not isinstance(values, Mapping) or not values:
        example = "Example: --set 'optim.overrides={\"^stem\": {lr_scale: 0.1, weight_decay: 0}}'"
        raise UserError(f"{label} = {values!r} is not a mapping of {' and '.join(known)}.", example)
    for name in values:
        if name not in known:
            raise UserError(f"{label} sets '{name}', which is unknown.", known_names(str(name), known))
    parsed = {name: _number(f"{label}: {name}", value) for name, value in values.items()}
    if parsed.get("lr_scale") == 0:
        hint = f"To keep these parameters as they are: --freeze 'regex:{pattern}'"
        raise UserError(f"{label}: lr_scale = 0 would only seem to train.", hint)
    return Override(compiled, label, parsed.get("lr_scale"), parsed.get("weight_decay"))


def _number(label: str, value: Any) -> float:
    number = math.nan if isinstance(value, bool) else as_number(value)
    if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise UserError(f"{label} = {value!r} is not a number of at least 0.")
    return float(number)


def as_number(value: Any) -> Any:
    """A text such as 1e-3, which YAML does not read as a number, as the number; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
