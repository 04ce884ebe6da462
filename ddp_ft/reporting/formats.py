"""Numbers, times and names as text."""

import time
from collections.abc import Mapping
from typing import Any

from ddp_ft.errors import printable
from ddp_ft.evaluation.intervals import Interval
from ddp_ft.tasks.metric_table import known_metric
from ddp_ft.texts import count, percent, readable, sample_noun


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    known = known_metric(metric)
    return known is not None and known.is_share


def metric_text(metric: str, value: float | None) -> str:
    """A metric's value: shares in percent with one decimal, others as figures."""
    if value is None:
        return "–"
    return percent(value, 1) if is_share(metric) else readable(value)


def interval_text(metric: str, interval: Interval | None) -> str:
    """An interval in the metric's form; empty if there is none."""
    if interval is None:
        return ""
    if is_share(metric):
        return f"{interval.low * 100:.1f} to {interval.high * 100:.1f} %"
    return f"{readable(interval.low)} to {readable(interval.high)}"


def signed(metric: str, value: float) -> str:
    """A difference with its sign: points of shares, else the metric's own units. A real minus, no sign of 0."""
    text = f"{value * 100:+.1f}" if is_share(metric) else ("+" if value >= 0 else "") + readable(value, 3)
    return text.replace("-", "−") if float(text) else text[1:]


def metric_name(metric: str) -> str:
    """A metric's name in words."""
    known = known_metric(metric)
    if known is not None and known.title:
        of = metric.partition("/")[2]
        return f"{known.title} of {of}" if of else known.title
    return metric.replace("_", " ").replace("macro f1", "macro F1").replace("micro f1", "micro F1")


def brief(name: str, longest: int = 100) -> str:
    """A name in one line; of a long one its two ends, since names that are alike differ at either."""
    name = printable(name)
    kept = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:kept]}…{name[-kept:]}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, larger, smaller, each in ((86400, "d", "h", 3600), (3600, "h", "min", 60), (60, "min", "s", 1)):
        if whole >= size:
            rest = whole % size // each
            return f"{whole // size} {larger} {rest} {smaller}" if rest else f"{whole // size} {larger}"
    return f"{whole} s"


def moment(seconds: float) -> str:
    """A time in UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def number_text(number: float) -> str:
    """A speed: whole from 10 on, else with two significant digits."""
    return count(number) if number >= 10 else f"{number:.2g}"


def p_text(p_value: float) -> str:
    """A p value with two significant digits."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def noun_of(description: Mapping[str, Any]) -> str:
    """What a sample is to the model of that model.json; "image" before there is one."""
    return sample_noun(str(description.get("preprocessing", {}).get("kind", "image")))
