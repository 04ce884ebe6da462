"""Which of the evaluated models becomes the best one."""

import math
from collections.abc import Mapping
from dataclasses import replace

from ddp_ft.run_folder.checkpoints import Score
from ddp_ft.tasks.metric_table import known_metric
from ddp_ft.training.course import LATEST
from ddp_ft.training.run import Run

# Metrics that are no shares, but whose error is about that of one.
_LIKE_SHARES = ("auroc",)
# Roots of mean squares, and the like: of normal errors the deviation is estimated to a share of 1 / sqrt(2 samples).
_DEVIATIONS = ("rmse", "mae")


def is_chosen(run: Run, metrics: Mapping[str, float], top: Mapping[str, float]) -> bool:
    """Whether a model takes the place of the best one before; `top` has the metrics of the best evaluation before,
    empty if there was none.

    With eval.choose = latest a worse one does, if it may be as good: the rate falls to 0 at the end of training, so
    that later models are better before they are looked at, and on few images the best of many evaluations is the
    luckiest one (docs/accuracy.md).
    """
    score, best = run.score(metrics), run.score(top) if top else None
    if best is None or score > best:
        return True
    error = standard_error(run.metric, top[run.metric], run.plan.val_samples)
    return run.plan.choice == LATEST and is_near(score, best, error)


def ranked(run: Run, score: Score, step: int) -> Score:
    """Return the score of a model that was chosen after a step, so that its checkpoint ranks first."""
    return replace(score, chosen=step) if run.plan.choice == LATEST else score


def standard_error(metric: str, value: float, samples: int) -> float:
    """Return how far that metric of so many samples is from that of endless ones, as a standard deviation; 0 if that is
    not known, as for a metric of the user's own.

    Of a share it is that of a binomial one, which balanced ones exceed a little; their bootstrap would take longer than
    an evaluation. As nothing is certain because a few images were all right, one more of each kind is counted (rule of
    succession).
    """
    name, known = metric.partition("/")[0], known_metric(metric)
    if known is None or not samples:
        return 0.0
    if (known.is_share and name != "r2") or name in _LIKE_SHARES:
        share = (min(1.0, max(0.0, value)) * samples + 1) / (samples + 2)
        return math.sqrt(share * (1 - share) / samples)
    return value / math.sqrt(2 * samples) if name in _DEVIATIONS else 0.0


def is_near(score: Score, top: Score, error: float) -> bool:
    """Whether a score is at most a standard error below the top one, or better."""
    return score >= top or score.quality >= top.quality - error
