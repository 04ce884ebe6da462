"""The names of the values of a row of metrics as curves: GROUP/NAME.

TensorBoard adds numbers to the groups, to order them; the names here are for queries.
"""

from collections.abc import Iterator, Mapping
from typing import Any

TRAIN = "train"

# The group of a metric, by which the page groups and orders its curves.
GROUPS = {
    "grad_norm": "gradients",
    "images_per_second": "speed",
    "data_wait_share": "speed",
    "tokens_per_second": "speed",
    "padding_share": "speed",
    "save_copy_seconds": "speed",
    "save_stall_seconds": "speed",
    "memory_allocated_mib": "system",
    "memory_reserved_mib": "system",
    "memory_process_mib": "system",
    "host_memory_share": "system",
    "cpu_load": "system",
    "gpu_load": "system",
    "bad_steps": "progress",
}
# All groups that `curve_name` puts before the slash.
FOLDERS = tuple(dict.fromkeys(("loss", "quality", "lr", *GROUPS.values())))
# The most groups of parameters whose rates have a curve each.
MOST_RATES = 4
BOOKKEEPING = ("step", "split", "time", "phase")


def points(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(curve, value) of each value of a row of metrics.jsonl; what was not finite is None there and left out."""
    for name, value in row.items():
        if name not in BOOKKEEPING and value is not None:
            yield curve_name(row["split"], name, row.get("phase", TRAIN)), value


def curve_name(split: str, name: str, phase: str) -> str:
    """Such as loss/val, quality/val_accuracy or probe/lr/head."""
    prefix = "" if phase == TRAIN else f"{phase}/"
    if name.startswith("lr/"):
        return prefix + name
    if name == "epoch":
        return f"{prefix}progress/epoch"
    if name in ("loss", "ema_loss"):
        return f"{prefix}loss/{name.replace('loss', split)}"
    return prefix + (f"{GROUPS.get(name, 'quality')}/{name}" if split == TRAIN else f"quality/{split}_{name}")


def few_rates(row: Mapping[str, Any]) -> dict[str, float]:
    """The learning rates of a row that are worth a curve.

    A group without weight decay is left out if its rate is that of the same parameters with it; of more than
    MOST_RATES groups, as with layer decay, there are the largest, the median and the smallest.
    """
    rates = {name: float(value) for name, value in row.items() if name.startswith("lr/") and value is not None}
    for name in [each for each in rates if each.endswith("_no_decay")]:
        if rates.get(name.removesuffix("_no_decay")) == rates[name]:
            del rates[name]
    if len(rates) <= MOST_RATES:
        return rates
    ordered = sorted(rates.values())
    return {"lr/largest": ordered[-1], "lr/median": ordered[len(ordered) // 2], "lr/smallest": ordered[0]}
