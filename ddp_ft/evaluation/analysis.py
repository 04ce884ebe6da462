"""What a model made of each sample of a set, and what follows from that; plain numbers, without drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.contracts import LABEL, NUMBERS, Evaluation, Task

# Of a label that may be there or not, what counts as there; the task's own rule.
THRESHOLD = 0.5
# Bins of the reliability diagram, as many as the metric `ece` has.
BINS = 15

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredSet:
    """Predictions beside the truth, N x names each, in the set's order.

    `kind` is LABEL, LABELS or NUMBERS. `scores` are probabilities, or numbers in the target's units; `truth` is 0 or 1
    (one 1 in each row for LABEL), or numbers in the same units.
    """

    kind: str
    names: tuple[str, ...]
    scores: Floats
    truth: Floats

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each sample (LABEL)."""
        return np.asarray(np.argmax(self.scores, 1), dtype=np.int64)

    @cached_property
    def target(self) -> NDArray[np.int64]:
        """The true class of each sample (LABEL)."""
        return np.asarray(np.argmax(self.truth, 1), dtype=np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether a sample is right: its class, or all its labels. Numbers are never simply right: all False."""
        if self.kind == LABEL:
            return np.equal(self.predicted, self.target)
        if self.kind == NUMBERS:
            return np.zeros(len(self), dtype=bool)
        right: NDArray[np.bool_] = ((self.scores >= THRESHOLD) == (self.truth > THRESHOLD)).all(1)
        return right

    @cached_property
    def confidence(self) -> Floats:
        """How sure the model is of its answer, 0 to 1: of its class, or of its least sure label. Numbers: 0."""
        if self.kind == LABEL:
            return np.asarray(np.max(self.scores, 1))
        if self.kind == NUMBERS:
            return np.zeros(len(self))
        sure: Floats = np.maximum(self.scores, 1 - self.scores).min(1)
        return sure

    @cached_property
    def error(self) -> Floats:
        """How far off a sample is: what of the truth the model did not believe, of several labels the worst; for
        numbers the largest distance, in standard deviations of the truth."""
        if self.kind == LABEL:  # probabilities sum to 1: none is further off than that of the true class
            return np.asarray(1 - np.take_along_axis(self.scores, self.target[:, None], 1)[:, 0])
        apart = np.abs(self.scores - self.truth)
        if self.kind == NUMBERS:
            spread = self.truth.std(0)
            apart = apart / np.where(spread > 0, spread, 1)
        return np.asarray(np.max(apart, 1))

    def worst(self, count: int) -> list[int]:
        """The most confident mistakes, worst first; of numbers those that are farthest off."""
        wrong = np.flatnonzero(~self.correct)
        return [int(index) for index in wrong[np.argsort(-self.error[wrong], kind="stable")[:count]]]

    def least_certain(self, count: int) -> list[int]:
        """Samples that are right, those first of which the model was least sure. Of numbers there are none."""
        right = np.flatnonzero(self.correct)
        return [int(index) for index in right[np.argsort(self.confidence[right], kind="stable")[:count]]]

    def caption(self, index: int) -> tuple[str, str]:
        """What the model says of a sample, and what is true."""
        if self.kind == LABEL:
            said, true = int(self.predicted[index]), int(self.target[index])
            return f"{self.names[said]} {self.scores[index, said]:.0%}", self.names[true]
        if self.kind == NUMBERS:
            pairs = [self._numbers(values[index]) for values in (self.scores, self.truth)]
            return pairs[0], pairs[1]
        wrong = int(np.abs(self.scores[index] - self.truth[index]).argmax())
        name, there = self.names[wrong], self.truth[index, wrong] > THRESHOLD
        return f"{name} {self.scores[index, wrong]:.0%}", name if there else f"no {name}"

    def _numbers(self, values: Floats) -> str:
        if len(self.names) == 1:
            return f"{values[0]:.4g}"
        return ", ".join(f"{name} {value:.3g}" for name, value in zip(self.names, values, strict=True))


def score_set(evaluation: Evaluation, task: Task) -> ScoredSet:
    """The scored set of an evaluation of which this rank has the predictions; what is no number in them counts as 0."""
    assert evaluation.predictions is not None and evaluation.records is not None
    scores = np.nan_to_num(task.estimates(evaluation.predictions).double().numpy(), copy=False)
    target = evaluation.records["target"].numpy()
    if target.ndim == 1 and task.kind != NUMBERS:
        truth = np.zeros_like(scores)
        np.put_along_axis(truth, target[:, None], 1.0, 1)
        return ScoredSet(task.kind, task.names, scores, truth)
    return ScoredSet(task.kind, task.names, scores, np.asarray(target, dtype=np.float64))


def confusion(scored_set: ScoredSet) -> NDArray[np.int64]:
    """How many samples of each class (rows) are taken for each class (columns); LABEL."""
    classes = len(scored_set.names)
    pairs = scored_set.target * classes + scored_set.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[int]:
    """The classes that take part in most mistakes, in their own order; all of them if there are no more."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return sorted(int(each) for each in np.argsort(-mistakes, kind="stable")[:count])


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width in confidence: of those that hold samples, mean confidence, share that is right, samples."""

    confidence: Floats
    accuracy: Floats
    samples: NDArray[np.int64]


def reliability(scored_set: ScoredSet, bins: int = BINS) -> Reliability:
    """How often the model is right where it says so (arXiv 1706.04599); of several labels, over all of them."""
    if scored_set.kind == LABEL:
        sure, right = scored_set.confidence, scored_set.correct.astype(float)
    else:
        sure, right = scored_set.scores.ravel(), scored_set.truth.ravel()
    places = np.clip((sure * bins).astype(int), 0, bins - 1)
    samples = np.bincount(places, minlength=bins)
    held = samples > 0
    means = [np.bincount(places, weights=each, minlength=bins)[held] / samples[held] for each in (sure, right)]
    return Reliability(means[0], means[1], samples[held])


def expected_calibration_error(scored_set: ScoredSet) -> float:
    """Mean distance of confidence and share that is right, over the bins of `reliability`, weighted by samples."""
    bins = reliability(scored_set)
    return float((np.abs(bins.confidence - bins.accuracy) * bins.samples).sum() / bins.samples.sum())


@dataclass(frozen=True)
class ThresholdHint:
    """From which probability on a label should count as there, so that F1 is largest, and F1 then and at 0.5."""

    threshold: float
    f1: float
    f1_at_half: float


def best_thresholds(scored_set: ScoredSet) -> list[ThresholdHint | None]:
    """For each label (LABELS) the threshold that suits this very set best; None for labels that no sample has."""
    return [
        _best_threshold(scored_set.scores[:, c], scored_set.truth[:, c] > THRESHOLD)
        for c in range(len(scored_set.names))
    ]


def _best_threshold(scores: Floats, there: NDArray[np.bool_]) -> ThresholdHint | None:
    if not there.any():
        return None
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(there[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + there.sum())
    f1[:-1][falling[1:] == falling[:-1]] = -1  # no threshold parts equal scores
    best = int(f1.argmax())
    # Halfway to the next score, as the set says nothing about where in between.
    threshold = (falling[best] + (falling[best + 1] if best + 1 < len(falling) else 0.0)) / 2
    said = scores >= THRESHOLD
    at_half = 2 * (said & there).sum() / (said.sum() + there.sum())
    return ThresholdHint(float(threshold), float(f1[best]), float(at_half))


def class_table(scored_set: ScoredSet) -> list[dict[str, Any]]:
    """For each class or label: its name, samples that have it, precision, recall and F1; None where not defined."""
    there = scored_set.truth.sum(0)
    if scored_set.kind == LABEL:  # counted, as a table of 50,000 x 1,000 takes seconds
        claimed = np.bincount(scored_set.predicted, minlength=len(scored_set.names))
        hits = np.bincount(scored_set.target[scored_set.correct], minlength=len(scored_set.names))
    else:
        said = scored_set.scores >= THRESHOLD
        hits, claimed = (said & (scored_set.truth > THRESHOLD)).sum(0), said.sum(0)
    return [
        {
            "name": name, "samples": int(there[c]), "precision": _share(hits[c], claimed[c]),
            "recall": _share(hits[c], there[c]), "f1": _share(2 * hits[c], claimed[c] + there[c]),
        }
        for c, name in enumerate(scored_set.names)
    ]  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def rarest(scored_set: ScoredSet, count: int) -> Sequence[int]:
    """The classes that fewest samples have, of those that any has."""
    counts = scored_set.truth.sum(0)
    order = [int(each) for each in np.argsort(counts, kind="stable") if counts[each]]
    return order[:count]
