"""The comparison of several runs, with tests whether one is really better than the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import to_flat, value_text
from ddp_ft.errors import UserError, printable
from ddp_ft.evaluation.intervals import Difference, difference, holm
from ddp_ft.reporting.facts import SPLITS, RunFacts, read_run
from ddp_ft.reporting.formats import duration, is_share, metric_name, noun_of, number_text, p_text, signed
from ddp_ft.reporting.set_section import TITLES, result, set_intervals
from ddp_ft.reporting.svg_charts import overlay
from ddp_ft.reporting.template import render
from ddp_ft.reporting.writing import put
from ddp_ft.trackers.charts import SERIES

# Models with a larger p value do not differ significantly.
SIGNIFICANCE = 0.05
MOST_RUNS = 50
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Verdict:
    """The test of a run against the best one, as a sentence and as the cells of a table."""

    best: str
    other: str
    difference: str
    interval: str
    p_value: str
    is_significant: bool
    sentence: str


def write_comparison(paths: Sequence[Path], output: Path) -> list[str]:
    """Write the page that compares these runs; return lines to print: the results of the tests, and the page.

    UserError for a path that is no run folder, for runs without a common metric, and if the page cannot be written.
    """
    if len(paths) > MOST_RUNS:
        raise UserError(f"{len(paths)} runs do not fit on a page; {MOST_RUNS} do.", "Compare fewer at a time.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("A run is given more than once.", "Give each run once.")
    runs = [read_run(path) for path in paths]
    metric = common_metric(runs)
    names = labels(runs)
    tests = [each for split in SPLITS if (each := compare(runs, names, split, metric))]
    page = render(
        "comparison.html",
        title=f"{len(runs)} runs compared",
        metric=metric_name(metric),
        rows=_rows(runs, names, metric),
        has_test=any(run.metrics("test") for run in runs),
        recipes=_differences(runs),
        names=names,
        series=_series(runs),
        charts=_charts(runs, metric),
        tests=tests,
        caveats=_caveats(runs),
    )
    put(output, page)
    return [*(line for test in tests for line in test["lines"]), f"Comparison: {output}"]


def common_metric(runs: Sequence[RunFacts]) -> str:
    """The deciding metric of the first run if all have it, else that of its task."""
    evaluated = [run.metrics("val") for run in runs if run.metrics("val")]
    for metric in (runs[0].metric, runs[0].task.primary_metric):
        if all(metric in found for found in evaluated):
            return metric
    kinds = ", ".join(sorted({run.task.name for run in runs}))
    raise UserError(f"These runs have no metric in common (their tasks: {kinds}).", "Compare runs of the same task.")


def labels(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each run: its folder's name, or its path if two names are the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else printable(str(run.path)) for name, run in zip(names, runs, strict=True)]


def compare(runs: Sequence[RunFacts], names: Sequence[str], split: str, metric: str) -> dict[str, Any] | None:
    """The tests of all runs against the best one on that set; None if fewer than two runs have it."""
    named = [(run, name) for run, name in zip(runs, names, strict=True) if split in run.scored_sets]
    if len(named) < 2:
        return None
    problem = pairing_problem([run for run, _ in named], [name for _, name in named], split, metric)
    if problem:
        lines = [f"On the {TITLES[split]} set the runs cannot be compared image by image: {problem}"]
        return {"title": TITLES[split], "verdicts": [], "lines": lines, "lead": lines}
    named.sort(key=lambda each: each[0].metrics(split)[metric], reverse=named[0][0].higher_is_better)
    verdicts = _against_best(named, split, metric)
    missing = [name for run, name in zip(runs, names, strict=True) if split not in run.scored_sets]
    note = [f"Left out, since their outputs are not stored: {', '.join(missing)}."] if missing else []
    begin = f"{TITLES[split].capitalize()} set: "
    lines = [begin + verdict.sentence for verdict in verdicts]
    lead = lines if len(lines) < 3 else [begin + _lead(verdicts)]
    return {"title": TITLES[split], "verdicts": verdicts, "lines": [*lines, *note], "lead": [*lead, *note]}


def _lead(verdicts: Sequence[Verdict]) -> str:
    """One sentence for many tests."""
    best, same = verdicts[0].best, [verdict.other for verdict in verdicts if not verdict.is_significant]
    if not same:
        return f"{best} is better than all others."
    return f"{best} is ahead, but without a significant difference from {', '.join(same)}."


def pairing_problem(runs: Sequence[RunFacts], names: Sequence[str], split: str, metric: str) -> str:
    """Why the runs cannot be compared sample by sample; empty if they can."""
    first = runs[0]
    for run, name in zip(runs, names, strict=True):
        mine, other = first.scored_sets[split], run.scored_sets[split]
        if type(other) is not type(mine) or other.names != mine.names:
            return f"{name} has other classes than {names[0]}."
        if run.split.get("fingerprint") != first.split.get("fingerprint"):
            return f"{name} is on other data than {names[0]}."
        if run.split.get(split) != first.split.get(split) or len(other) != len(mine):
            return f"{name} has other images in that set than {names[0]}."
        if not np.array_equal(other.truth, mine.truth, equal_nan=True):
            return f"{name} has other targets in that set than {names[0]}."
        if metric not in run.metrics(split) or metric not in other.statistics():
            return f"{metric_name(metric)} cannot be drawn again for {name}."
    return ""


def _against_best(named: Sequence[tuple[RunFacts, str]], split: str, metric: str) -> list[Verdict]:
    """The tests of runs and their names against the first one."""
    (best, name), *others = named
    mine, upwards = best.scored_sets[split], best.higher_is_better
    found = [difference(run.scored_sets[split], mine, metric, upwards) for run, _ in others]
    corrected = holm([each.p_value for each in found])
    return [
        _verdict((name, other), metric, each, p_value, len(others))
        for (_, other), each, p_value in zip(others, found, corrected, strict=True)
    ]


def _verdict(names: tuple[str, str], metric: str, found: Difference, p_value: float, tests: int) -> Verdict:
    """The verdict on the best run and another; `p_value` is corrected for that many tests."""
    (best, other), interval, p = names, found.interval, p_text(p_value)
    by = signed(metric, found.value) + (" points" if is_share(metric) else "")
    ends = f"{signed(metric, interval.low)} to {signed(metric, interval.high)}"
    corrected = f", corrected for {tests} comparisons" if tests > 1 else ""
    how = f"{by} of {metric_name(metric)} (95 % interval {ends}; {p}{corrected})"
    if p_value < SIGNIFICANCE:
        return Verdict(best, other, by, ends, p, True, f"{best} is better than {other} by {how}.")
    place = f"{best} is ahead by {how}" if found.value else f"both have the same {metric_name(metric)} (p = 1)"
    sentence = f"There is no significant difference between {best} and {other}: {place}."
    return Verdict(best, other, by, ends, p, False, sentence)


def _series(runs: Sequence[RunFacts]) -> list[int]:
    """The number of each run's colour."""
    return [number % len(SERIES) + 1 for number in range(len(runs))]


def _rows(runs: Sequence[RunFacts], names: Sequence[str], metric: str) -> list[dict[str, Any]]:
    rows = []
    for run, name, colour in zip(runs, names, _series(runs), strict=True):
        found = set_intervals(run)
        speed, wall = run.summary.get("images_per_second"), run.summary.get("wall_seconds")
        rows.append(
            {
                "name": name,
                "colour": colour,
                "model": printable(str(run.config.model.name)),
                **{split: result(run, found, split, metric) for split in SPLITS},
                "epoch": f"{run.summary.get('epoch', 0):g} of {run.epochs}" if run.summary else run.status,
                "best": "probe" if run.best.get("phase") == "probe" else f"{run.best.get('epoch', 0):g}",
                "speed": number_text(speed) if speed else "–",
                "wall": duration(wall) if wall else "–",
                "processes": f"{run.plan.world_size} x {run.plan.device}",
            }
        )
    return rows


def _differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The keys of recipe and length that differ, with the value of each run."""
    flat = [to_flat(run.config, [RECIPE, LENGTH]) for run in runs]
    keys = [key for key in flat[0] if any(each[key] != flat[0][key] for each in flat)]
    return [(key, [_shown(value_text(key, each[key])) for each in flat]) for key in keys]


def _shown(value: str) -> str:
    text = printable(value)
    return text if len(text) <= _LONGEST_VALUE else f"…{text[1 - _LONGEST_VALUE :]}"


def _charts(runs: Sequence[RunFacts], metric: str) -> list[tuple[str, Any]]:
    nouns = {noun_of(run.description) for run in runs}
    noun = nouns.pop() if len(nouns) == 1 else "sample"
    charts = {
        f"{metric_name(metric)} on the validation set": overlay(runs, "val", metric),
        "Loss on the validation set": overlay(runs, "val", "loss"),
        "Training loss": overlay(runs, "train", "loss"),
        f"{noun.capitalize()}s per second": overlay(runs, "train", "images_per_second"),
    }
    return [(title, chart) for title, chart in charts.items() if chart is not None]


def _caveats(runs: Sequence[RunFacts]) -> list[str]:
    lines = [
        "The tests ask whether these very models differ on images of this kind, not whether other seeds would: if the "
        "difference is small, train each recipe with several seeds.",
        "Accuracy and exact match: McNemar's exact test. Other metrics: paired bootstrap over images. The best run "
        "is compared with each other one; with several, p values are corrected by Holm's method. Intervals are not "
        "corrected.",
    ]
    if any(run.config.data.group for run in runs):
        lines.append("Images of one group are alike, which the tests do not consider: they find too many differences.")
    return lines
