"""What a report shows of one set: which classes go wrong, which images, and how far confidence can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddp_ft.contracts import LabelledSource, Processor
from ddp_ft.data.image.pillow import Pixels
from ddp_ft.data.open_sample import open_sample
from ddp_ft.errors import printable
from ddp_ft.evaluation.intervals import Interval, intervals
from ddp_ft.reporting.evaluated_samples import UNREADABLE, read_error
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.reporting.formats import brief, count, plural
from ddp_ft.reporting.svg_charts import data_uri, reliability_svg, scatter_svg
from ddp_ft.tasks.scored.base import MOST_SCATTERS, ScoredSet, most_confused

TITLES = {"val": "validation", "test": "test"}
# Classes whose whole matrix is shown; of more, those that are confused most.
WHOLE_MATRIX, PART_OF_MATRIX = 25, 15
LONGEST_COLUMN = 24
MOST_PAIRS = 12
# Rows of a table that are not folded away, and the most that the page has at all.
OPEN_ROWS, MOST_ROWS = 12, 2000
MISTAKES, HITS = 12, 8
# Images with fewer pixels a side are enlarged by whole pixels.
SMALL = 100


@dataclass(frozen=True)
class Opened:
    """A set whose images can be shown, or why they cannot."""

    source: LabelledSource | None
    reason: str = ""


def judged_set(facts: RunFacts, split: str, opened: Opened) -> dict[str, Any]:
    """What the template is given of a set of which the folder has the predictions; empty if it has nothing to show."""
    scored_set = facts.scored_sets[split]
    matrix, bins = scored_set.confusion(), scored_set.reliability()
    found: dict[str, Any] = {
        "scatters": [(brief(name), scatter_svg(name, *each)) for name, *each in scored_set.points(MOST_SCATTERS)],
        "classes": _class_rows(scored_set),
        "thresholds": _thresholds(scored_set),
        **_images(facts, scored_set, opened),
    }
    if bins is not None:
        error = f"{bins.calibration_error:.3f}"
        found |= {"reliability": reliability_svg(bins), "ece": error, "leaning": _leaning(scored_set)}
    found |= _matrix(scored_set, matrix) if matrix is not None else {}
    return {"title": TITLES[split], "open_rows": OPEN_ROWS, **found} if any(found.values()) else {}


def set_intervals(facts: RunFacts) -> dict[str, dict[str, Interval]]:
    """The intervals of each set's metrics."""
    return {split: intervals(scored_set) for split, scored_set in facts.scored_sets.items()}


def _class_rows(scored_set: ScoredSet) -> list[dict[str, Any]]:
    """The classes by rising F1; those that no sample has, last."""
    rows = sorted(
        scored_set.class_table(), key=lambda row: (not row["samples"], -1 if row["f1"] is None else row["f1"])
    )
    return [
        {
            "name": brief(row["name"]),
            "samples": count(row["samples"]),
            **{name: "–" if row[name] is None else f"{row[name] * 100:.1f}" for name in ("precision", "recall", "f1")},
        }
        for row in rows[:MOST_ROWS]
    ]


def _matrix(scored_set: ScoredSet, matrix: NDArray[np.int64]) -> dict[str, Any]:
    classes = len(scored_set.names)
    shown = list(range(classes)) if classes <= WHOLE_MATRIX else most_confused(matrix, PART_OF_MATRIX)
    names = [brief(scored_set.names[c]) for c in shown]
    # Long names would make columns as high as a page: numbers stand for them.
    is_long = max(map(len, names)) > LONGEST_COLUMN
    sums = np.maximum(matrix.sum(1), 1)
    rows = [
        {
            "name": f"{number}  {name}" if is_long else name,
            "cells": [{"count": int(matrix[c, d]), "share": float(matrix[c, d] / sums[c])} for d in shown],
            "rest": int(matrix[c].sum() - matrix[c, shown].sum()),
            "samples": count(int(matrix[c].sum())),
        }
        for number, (c, name) in enumerate(zip(shown, names, strict=True), 1)
    ]
    return {
        "matrix": rows,
        "matrix_names": [str(number) for number in range(1, len(shown) + 1)] if is_long else names,
        "matrix_of": "" if len(shown) == classes else f"The {len(shown)} of {classes} classes that are confused most.",
        "pairs": _pairs(scored_set, matrix) if classes > 2 else [],
    }


def _pairs(scored_set: ScoredSet, matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The mistakes that are made most often."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(each), len(scored_set.names)) for each in order]
    return [
        {
            "true": brief(scored_set.names[true]),
            "said": brief(scored_set.names[said]),
            "count": int(wrong[true, said]),
            "share": f"{wrong[true, said] / matrix[true].sum() * 100:.0f} %",
        }
        for true, said in places
        if wrong[true, said]
    ]


def _leaning(scored_set: ScoredSet) -> str:
    """One sentence of what confidence is worth, where it is one of being right."""
    sure, correct = scored_set.sureness, scored_set.correct
    if sure is None or correct is None:
        return ""
    right = float(correct.mean())
    if abs(sure - right) < 0.01:
        return f"On average the model is as sure ({sure:.0%}) as it is right ({right:.0%})."
    kind = "surer than it is right" if sure > right else "less sure than it is right"
    return f"On average the model is {kind}: {sure:.0%} sure, {right:.0%} right."


def _thresholds(scored_set: ScoredSet) -> list[dict[str, str]]:
    return [
        {
            "name": brief(name),
            "threshold": f"{hint.threshold:.2f}",
            "f1": f"{hint.f1 * 100:.1f}",
            "before": f"{hint.f1_at_half * 100:.1f}",
        }
        for name, hint in zip(scored_set.names, scored_set.thresholds(), strict=False)
        if hint is not None
    ][:MOST_ROWS]


def _images(facts: RunFacts, scored_set: ScoredSet, opened: Opened) -> dict[str, Any]:
    chosen = {"mistakes": scored_set.worst(MISTAKES), "hits": scored_set.least_certain(HITS)}
    reason, shown = opened.reason if scored_set.worst_heading else "", {}
    for name, indices in chosen.items():
        try:
            shown[name] = _thumbnails(facts, scored_set, indices, opened.source)
        except UNREADABLE as error:
            reason = read_error(error)
            shown[name] = _thumbnails(facts, scored_set, indices, None)
    correct = scored_set.correct
    wrong = "" if correct is None else plural(int((~correct).sum()), "mistake")
    of = f"{wrong} in {plural(len(scored_set), 'image')}" if wrong else ""
    return {**shown, "no_images": reason, "wrong": of, "worst_heading": scored_set.worst_heading}


def _thumbnails(
    facts: RunFacts, scored_set: ScoredSet, indices: Sequence[int], source: LabelledSource | None
) -> list[dict[str, Any]]:
    if source is None or facts.processor is None:
        return []
    shown = []
    for index in indices:
        image = image_of(source, index, facts.processor)
        if image is None:
            continue
        said, true = scored_set.caption(index)
        about = {"said": brief(said), "true": brief(true), "is_small": max(image.shape) < SMALL}
        shown.append({"uri": data_uri(image), **about, **_file_of(source, index)})
    return shown


def image_of(source: LabelledSource, index: int, processor: Processor) -> Pixels | None:
    """A sample's image as the model sees it in evaluation; None if it has none. Raises BadSample."""
    transform, to_device = processor.eval_transform(), processor.on_device(torch.device("cpu"), channels_last=False)
    batch = to_device(transform.collate([transform(open_sample(source, index))]))
    return next(iter(processor.pixels(batch)), None)


def _file_of(source: LabelledSource, index: int) -> dict[str, str]:
    """The whole path, and its last part to show."""
    path = printable(source.name(index))
    return {"path": path, "file": Path(path).name}
