"""What `predict` and `evaluate` are asked of trained models. Free of torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.config.paths import expanded
from ddp_ft.errors import UserError, printable, reason_of

VALIDATION = "validation"
# The least probability of a label that is there: of all labels, of those that are named, or VALIDATION: as chosen on
# the validation set of the model's run.
Thresholds = float | Mapping[str, float] | str
# In a file that `evaluate` wrote, what the thresholds are called.
THRESHOLDS = "thresholds"
_EXPECTED = "Expected a probability such as 0.3, NAME=0.3,NAME=0.7, a file of them (.json), or validation."


@dataclass(frozen=True)
class Asked:
    """Which models are combined, by which views of each image (one of `ensemble.VIEWS`; None: as each
    model's run chose), where and how they compute.

    `batch_size` and `workers` are those of a process; None: as many as fit and suit.
    """

    models: tuple[Path, ...]
    views: str | None = None
    device: str = "auto"
    thresholds: Thresholds | None = None
    batch_size: int | None = None
    workers: int | None = None


def parse_thresholds(given: str) -> Thresholds:
    """The thresholds of --threshold. UserError for what is none, also in a file."""
    if given == VALIDATION:
        return VALIDATION
    if given.lower().endswith(".json"):
        return _in_file(Path(str(expanded(given))))
    if "=" not in given:
        return probability(given)
    pairs = [pair.rpartition("=") for pair in given.split(",") if pair.strip()]
    names = [name.strip() for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--threshold names '{printable(twice[0])}' twice.", "Give one threshold for each name.")
    return {name: probability(number, name) for name, (_, _, number) in zip(names, pairs, strict=True)}


def probability(given: object, name: str = "") -> float:
    """The number, 0 to 1. UserError for something else; `name` is the label's."""
    shown = printable(f"{name}={given}" if name else str(given))
    try:
        number = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"--threshold {shown}: no probability.", _EXPECTED) from None
    if 0 <= number <= 1:
        return number
    hint = f"{number:g} % is {number / 100:g}." if 1 < number <= 100 else _EXPECTED
    raise UserError(f"--threshold {shown}: a probability is from 0 to 1.", hint)


def _in_file(path: Path) -> Mapping[str, float]:
    """{name: probability}, alone or as `evaluate --output` has it."""
    given = f"--threshold {printable(str(path))}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last for brackets in brackets
        raise UserError(f"{given} cannot be read: {reason_of(error)}.", _EXPECTED) from None
    found = found.get(THRESHOLDS, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise UserError(f"{given} has no thresholds.", 'Expected {"NAME": 0.3, ...}, or what `evaluate` wrote.')
    return {name: probability(number, name) for name, number in found.items()}
