"""The metrics by name, without torch: for the tasks, and for what reads the files of their runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`is_share`: from 0 to 1, printed in percent. `counts_samples`: the share of samples that are right.

    `title` is its name in words and `hub_name` its name on hubs of models, if they differ from its own.
    """

    higher_is_better: bool = True
    is_share: bool = True
    counts_samples: bool = False
    title: str = ""
    hub_name: str = ""


METRICS = {
    "loss": Metric(higher_is_better=False, is_share=False),
    "accuracy": Metric(counts_samples=True),
    "balanced_accuracy": Metric(),
    "macro_f1": Metric(hub_name="f1"),
    "micro_f1": Metric(),
    "f1": Metric(),
    "precision": Metric(),
    "recall": Metric(),
    "unseen": Metric(higher_is_better=False, title="words beyond the length"),
    "auroc": Metric(is_share=False, title="AUROC", hub_name="roc_auc"),
    "ece": Metric(higher_is_better=False, is_share=False, title="ECE"),
    "top5_accuracy": Metric(counts_samples=True, title="top-5 accuracy"),
    "mAP": Metric(title="mAP"),
    "exact_match": Metric(counts_samples=True),
    "mae": Metric(higher_is_better=False, is_share=False, title="MAE"),
    "rmse": Metric(higher_is_better=False, is_share=False, title="RMSE"),
    "r2": Metric(is_share=False, title="R²"),
}
# The prefixes of names of metrics that are better if lower, a user's own included.
LOWER_IS_BETTER = tuple(name for name, metric in METRICS.items() if not metric.higher_is_better)


def known_metric(name: str) -> Metric | None:
    """The metric of that name, or of METRIC/NAME for one of several numbers; None for a user's own."""
    return METRICS.get(name.partition("/")[0])


def directions_of(*names: str) -> dict[str, bool]:
    """Whether more is better, for each of these metrics."""
    return {name: METRICS[name.partition("/")[0]].higher_is_better for name in names}
