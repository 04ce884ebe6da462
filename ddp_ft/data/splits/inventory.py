"""The samples that a run began with, so that a refusal of other data can name what has changed."""

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from ddp_ft.errors import printable, shortened

# Samples of an inventory; of more than these split.json would become large, and only the fingerprint is compared.
MOST_SAMPLES = 50_000

# By a sample's name a short hash of whatever else makes it the same; of several samples of one name, of each.
Inventory = Mapping[str, str]


def make_inventory(count: int, samples: Iterable[tuple[str, Any]]) -> dict[str, str] | None:
    """The inventory of so many samples, each with its name and its other facts, such as size and target; None if there
    are more than MOST_SAMPLES."""
    if count > MOST_SAMPLES:
        return None
    marks: dict[str, str] = {}
    for name, fact in samples:
        mark = blake2b(os.fsencode(repr(fact)), digest_size=4).hexdigest()
        marks[name] = f"{marks[name]} {mark}" if name in marks else mark
    return marks


def describe_changes(before: Inventory | None, now: Inventory | None) -> str:
    """What is different now, with the first names: "1 file more (dog/3.jpg)"; empty if that is not known."""
    if before is None or now is None:
        return ""
    changes = {
        "more": [name for name in now if name not in before],
        "fewer": [name for name in before if name not in now],
        "with another size or other values": [name for name in now if before.get(name, now[name]) != now[name]],
    }
    return "; ".join(
        f"{len(names)} {'file' if len(names) == 1 else 'files'} {how} ({shortened([*map(printable, names)], 3)})"
        for how, names in changes.items()
        if names
    )
