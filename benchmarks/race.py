"""Measurements in interleaved rounds: each round measures every contender once, so that all meet the same machine.

The order turns by one place each round, lest the same one always come after the same other.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contenders import Contender, MeasurementFailed, measure
from benchmarks.workload import Outcome, Workload


@dataclass
class Record:
    """The measurements of one contender: {round: outcome}, and why one could not be had."""

    contender: Contender
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0  # of its longest measurement, start and all

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "title": self.contender.title,
            "images_per_second": {number: outcome.images_per_second for number, outcome in self.outcomes.items()},
            "cpu_ms_per_image": {number: outcome.cpu_ms_per_image for number, outcome in self.outcomes.items()},
            "timed_steps": next((outcome.steps for outcome in self.outcomes.values()), 0),
            "notes": next((outcome.notes for outcome in self.outcomes.values()), ""),
            "failure": self.failure,
        }


@dataclass(frozen=True)
class Limits:
    """How long all may take (the moment by `time.monotonic` at which nothing more begins), and one measurement."""

    until: float = float("inf")
    each: float = 900.0

    def patience(self) -> float:
        """Seconds for a measurement that begins now; a little more than there are, as it was thought to fit."""
        return min(self.each, max(0.0, self.until - time.monotonic()) + 20)


Measure = Callable[[Contender, Workload, float], Outcome]


def race(
    contenders: Sequence[Contender],
    workload: Workload,
    rounds: int,
    limits: Limits,
    tell: Callable[[str], None],
    measure_one: Measure = measure,
) -> list[Record]:
    """Measure all in each round. Who fails is left out from then on; what time does not allow is not begun."""
    chosen = [each for each in contenders if workload.processes > 1 or not each.ddp]
    records = [Record(each) for each in chosen]
    for number in range(rounds):
        for record in records[number % len(records) :] + records[: number % len(records)]:
            if record.failure:
                continue
            if time.monotonic() + _expected(record, records) > limits.until:
                record.failure = "" if record.outcomes else "not measured: no time was left"
                continue
            _measure(record, workload, number, limits, measure_one)
            tell(_progress(record, number, rounds))
    return records


def _expected(record: Record, records: Sequence[Record]) -> float:
    return record.seconds or max(each.seconds for each in records)


def _measure(record: Record, workload: Workload, number: int, limits: Limits, measure_one: Measure) -> None:
    began = time.monotonic()
    try:
        record.outcomes[number] = measure_one(record.contender, workload, limits.patience())
    except MeasurementFailed as error:
        record.failure = str(error)
    record.seconds = max(record.seconds, time.monotonic() - began)


def _progress(record: Record, number: int, rounds: int) -> str:
    outcome = record.outcomes.get(number)
    found = f"FAILED: {record.failure}"
    if outcome:
        cpu = outcome.cpu_ms_per_image
        found = f"{outcome.images_per_second:9.1f} images/s" + (f", {cpu:6.1f} CPU ms an image" if cpu else "")
    load = os.getloadavg()[0]
    return f"round {number + 1}/{rounds}  {record.contender.key:18s} {found}  {record.seconds:5.1f} s, load {load:.1f}"
