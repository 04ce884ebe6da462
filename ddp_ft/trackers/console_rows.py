"""Rows of metrics as lines of a console, at most WIDTH columns wide."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ddp_ft.contracts import TRAIN
from ddp_ft.texts import metric_figure

# Of the narrowest terminal that is usual; logs of batch jobs are read there too.
WIDTH = 80
_LABEL = 7  # columns of "train", "val" or "test" and what is between it and the rest
# The prefix of the moving average's metrics, and what the two rows of a table are called.
_EMA = "ema_"
_ROWS = {"weights": "", "average": _EMA}
# The speeds of a row, of which the first is shown, and what they count.
_SPEEDS = {"tokens_per_second": "tokens", "images_per_second": "images"}
# The least share of the training time, waited for data, that is worth a place in the line.
_NOTABLE_WAIT = 0.05


@dataclass(frozen=True)
class Place:
    """Where a phase is: after `step` of `total_steps` steps, of which an epoch has `steps_per_epoch`."""

    step: int
    total_steps: int
    steps_per_epoch: int

    def __str__(self) -> str:
        return f"epoch {self.epoch_of(self.step)}  step {self.step}/{self.total_steps}"

    def epoch_of(self, step: int) -> str:
        """The epoch that a step is in, counted from 1, of all: "2/3"."""
        return "/".join(str(math.ceil(steps / self.steps_per_epoch)) for steps in (step, self.total_steps))


def training_line(place: Place, values: Mapping[str, float], time_left: str) -> str:
    """Loss, speed and the time left; metrics.jsonl has the rest of the row."""
    parts = [str(place), f"loss {metric_figure(values['loss'])}"]
    if values.get("bad_steps"):
        parts.append(f"bad steps {values['bad_steps']:.0f}")
    parts += [*speed_parts(values), f"eta {time_left}"]
    return _folded(TRAIN, parts)


def speed_parts(values: Mapping[str, float]) -> list[str]:
    """Images per second once that is measured, or tokens and the share of padding; and the share of the time that is
    spent waiting, if it is large."""
    name, noun = next(((name, noun) for name, noun in _SPEEDS.items() if values.get(name)), ("", ""))
    speed = values.get(name)
    parts = [f"{speed:.0f} {noun}/s" if speed >= 100 else f"{speed:.3g} {noun}/s"] if speed else []
    if "padding_share" in values:
        parts.append(f"padding {values['padding_share']:.0%}")
    wait = values.get("data_wait_share", 0.0)
    return [*parts, f"waits {wait:.0%}"] if wait >= _NOTABLE_WAIT else parts


def evaluation_lines(label: str, place: str, values: Mapping[str, float]) -> str:
    """All metrics of an evaluation; those of the weights and of their moving average, if there is one, as a table."""
    if not any(name.startswith(_EMA) for name in values):
        return _folded(label, [place, *(f"{name} {metric_figure(value)}" for name, value in values.items())])
    names = [name for name in values if not name.startswith(_EMA)]
    table = [
        ["", *names],
        *([row, *(metric_figure(values[prefix + name]) for name in names)] for row, prefix in _ROWS.items()),
    ]
    return "\n".join([f"{label:<{_LABEL}}{place}", *_table_lines(table)])


def _folded(label: str, parts: Sequence[str]) -> str:
    """The parts in lines after the label; no part is divided."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}" if lines[-1] else part
        if lines[-1] and _LABEL + len(joined) > WIDTH:
            lines.append(part)
        else:
            lines[-1] = joined
    first = f"{label:<{_LABEL - 1}} "
    return f"\n{' ' * len(first)}".join([first + lines[0], *lines[1:]])


def _table_lines(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The table's lines; columns that do not fit stand below, beside the first column once more."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    start = 1
    while start < len(widths):
        stop, used = start, _LABEL + widths[0]
        while stop < len(widths) and (stop == start or used + 2 + widths[stop] <= WIDTH):
            used, stop = used + 2 + widths[stop], stop + 1
        for row in table:
            cells = [f"{cell:>{width}}" for cell, width in zip(row[start:stop], widths[start:stop], strict=True)]
            yield "  ".join([f"{'':<{_LABEL}}{row[0]:<{widths[0]}}", *cells])
        start = stop
