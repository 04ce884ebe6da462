"""A report's section on one set: the classes and images that are predicted wrong, and the quality of confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.paths import code_file
from ddp_ft.contracts import BadSample, LabelledSource
from ddp_ft.data.splits.open import open_part, schema_in
from ddp_ft.errors import UserError, printable
from ddp_ft.evaluation.intervals import Interval, intervals
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.reporting.formats import brief, interval_text, metric_text, noun_of
from ddp_ft.reporting.svg_charts import ranking_svgs, reliability_svg, scatter_svg
from ddp_ft.tasks.scored.base import MOST_SCATTERS, ScoredSet, most_confused
from ddp_ft.texts import count, percent, plural

TITLES = {"val": "validation", "test": "test"}
# Classes whose whole matrix is shown; of more, those that are confused most.
WHOLE_MATRIX, PART_OF_MATRIX = 25, 15
LONGEST_COLUMN = 24
MOST_PAIRS = 12
# Rows of a table that are not folded away, and the most that the page has at all.
OPEN_ROWS, MOST_ROWS = 12, 2000
MISTAKES, HITS = 12, 8
# What shows samples of a kind: (facts, scored set, indices, source, whether to explain the answers). A further kind is
# a line here; samples of others are shown if their processor makes pixels of them.
_SHOWN = {
    "image": "ddp_ft.reporting.shown_images:shown_images",
    "text": "ddp_ft.reporting.shown_texts:shown_texts",
}
UNREADABLE = (UserError, BadSample, OSError, ValueError)

Intervals = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Opened:
    """A set whose images can be shown, or the reason why they cannot."""

    source: LabelledSource | None
    reason: str = ""


def open_set(facts: RunFacts, split: str, sources: Mapping[str, LabelledSource] | None, data: Path | None) -> Opened:
    """A set from `sources`, the run's open sets; if that is None, from `data` or from where the run had it."""
    if sources is not None:
        return Opened(sources.get(split))
    try:
        return Opened(open_evaluated(facts, split, data))
    except UNREADABLE as error:
        return Opened(None, _reason(error))


def open_evaluated(facts: RunFacts, split: str, data: Path | None = None) -> LabelledSource:
    """The samples of a scored set, from the run's folder of data or from `data`. UserError if they have changed."""
    path = data or facts.config.data.path
    if path is None:
        raise UserError("The run names no data.")
    if data is None and code_file(path):  # a run folder is data, and may name code of others
        raise UserError(f"they come from code, {path}, which is run only if it is named: --data {path}")
    config, scored_set = replace(facts.config.data, path=path), facts.scored_sets[split]
    schema = schema_in(path, facts.task.kinds, facts.names)
    # Damaged images are searched for, by reading all, only if some were left out.
    for on_error in dict.fromkeys(("fail", config.on_error)):
        source = open_part(replace(config, on_error=on_error), schema, split, facts.split)[1]
        if len(source) == len(scored_set):
            break
    if len(source) != len(scored_set) or not scored_set.has_targets(source.targets):
        raise UserError(f"{config.path} has other {split} {noun_of(facts.description)}s than the run had.")
    return source


def _reason(error: Exception) -> str:
    """Why images cannot be shown, in one line."""
    return printable(error.message if isinstance(error, UserError) else str(error)).removeprefix("--data ")


def scored_section(facts: RunFacts, split: str, opened: Opened) -> dict[str, Any]:
    """The template's values for a scored set; empty if there is nothing to show."""
    scored_set = facts.scored_sets[split]
    matrix, bins = scored_set.confusion(), scored_set.reliability()
    found: dict[str, Any] = {
        "scatters": [(brief(name), scatter_svg(name, *each)) for name, *each in scored_set.points(MOST_SCATTERS)],
        "classes": _class_rows(scored_set),
        "counted": scored_set.counted,
        "thresholds": [
            (name, hint)
            for name, hint in zip(scored_set.names, scored_set.thresholds(), strict=False)
            if hint is not None
        ][:MOST_ROWS],
        "rankings": ranking_svgs(scored_set),
        **_images(facts, scored_set, opened),
    }
    if bins is not None:
        error = bins.calibration_error
        found |= {"reliability": reliability_svg(bins), "ece": error, "leaning": _leaning(scored_set)}
    found |= _matrix(scored_set, matrix) if matrix is not None else {}
    return {"title": TITLES[split], "open_rows": OPEN_ROWS, **found} if any(found.values()) else {}


def set_intervals(facts: RunFacts) -> dict[str, dict[str, Interval]]:
    """The intervals of each set's metrics."""
    return {split: intervals(scored_set) for split, scored_set in facts.scored_sets.items()}


def result(facts: RunFacts, found: Intervals, split: str, metric: str) -> tuple[str, str]:
    """A metric on a set and its interval, as text."""
    interval = found.get(split, {}).get(metric)
    return metric_text(metric, facts.metrics(split).get(metric)), interval_text(metric, interval)


def _class_rows(scored_set: ScoredSet) -> list[dict[str, Any]]:
    """The classes by rising F1; those without samples last."""
    rows = scored_set.class_table()
    return sorted(rows, key=lambda row: (not row["samples"], -1 if row["f1"] is None else row["f1"]))[:MOST_ROWS]


def _matrix(scored_set: ScoredSet, matrix: NDArray[np.int64]) -> dict[str, Any]:
    classes = len(scored_set.names)
    shown = list(range(classes)) if classes <= WHOLE_MATRIX else most_confused(matrix, PART_OF_MATRIX)
    names = [brief(scored_set.names[c]) for c in shown]
    # Long names would make columns as high as a page, and are replaced by numbers.
    is_long = max(map(len, names)) > LONGEST_COLUMN
    sums = np.maximum(matrix.sum(1), 1)
    rows = [
        {
            "name": f"{number}  {name}" if is_long else name,
            "cells": [(int(matrix[c, d]), float(matrix[c, d] / sums[c])) for d in shown],
            "rest": int(matrix[c].sum() - matrix[c, shown].sum()),
            "samples": count(int(matrix[c].sum())),
        }
        for number, (c, name) in enumerate(zip(shown, names, strict=True), 1)
    ]
    return {
        "matrix": rows,
        "matrix_names": [str(number) for number in range(1, len(shown) + 1)] if is_long else names,
        "matrix_of": "" if len(shown) == classes else f"The {len(shown)} of {classes} classes that are confused most.",
        "pairs": _pairs(scored_set.names, matrix) if classes > 2 else [],
    }


def _pairs(names: Sequence[str], matrix: NDArray[np.int64]) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true and predicted class, their number, and their share of the true class."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(each), len(names)) for each in order]
    return [(names[t], names[p], int(wrong[t, p]), wrong[t, p] / matrix[t].sum()) for t, p in places if wrong[t, p]]


def _leaning(scored_set: ScoredSet) -> str:
    """A sentence that compares confidence with accuracy, if the set has both."""
    sure, correct = scored_set.sureness, scored_set.correct
    if sure is None or correct is None:
        return ""
    right = float(correct.mean())
    if abs(sure - right) < 0.01:
        return f"Mean confidence ({percent(sure, 1)}) is close to accuracy ({percent(right, 1)})."
    kind = "overconfident" if sure > right else "underconfident"
    return f"The model is {kind}: mean confidence {percent(sure, 1)}, accuracy {percent(right, 1)}."


def _images(facts: RunFacts, scored_set: ScoredSet, opened: Opened) -> dict[str, Any]:
    chosen = {
        "mistakes": scored_set.worst(MISTAKES),
        "unsure": scored_set.least_certain(HITS),
        "correct": scored_set.correct_examples(HITS),
    }
    reason, shown = opened.reason if scored_set.worst_heading else "", {}
    for name, indices in chosen.items():
        try:
            shown[name] = _shown(facts, scored_set, indices, opened.source, explains=name == "mistakes")
        except UNREADABLE as error:
            reason, shown[name] = _reason(error), []
    correct, wrong = scored_set.correct, ""
    if correct is not None:
        wrong = f"{plural(int((~correct).sum()), 'mistake')} in {plural(len(scored_set), noun_of(facts.description))}"
    headings = {"worst_heading": scored_set.worst_heading, "correct_heading": scored_set.correct_heading}
    return {**shown, "no_images": reason, "wrong": wrong, **headings}


def _shown(
    facts: RunFacts, scored_set: ScoredSet, indices: Sequence[int], source: LabelledSource | None, explains: bool
) -> list[dict[str, Any]]:
    """The template's values for these samples, as far as samples of their kind can be shown."""
    if source is None or not facts.description:
        return []
    module, _, name = _SHOWN.get(source.kind, _SHOWN["image"]).partition(":")
    show = getattr(import_module(module), name)
    return cast(list[dict[str, Any]], show(facts, scored_set, indices, source, explains))
