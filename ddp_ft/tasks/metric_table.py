"""What is known of metrics by their names, without torch: for the tasks, and for what reads the files of their runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`is_share`: it is from 0 to 1 and shown in percent. `counts_samples`: it is the share of samples that are right.

    `title` is what it is called in words and `hub_name` what hubs of models call it, where that is not its name.
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
    "auroc": Metric(is_share=False, title="AUROC", hub_name="roc_auc"),
    "ece": Metric(higher_is_better=False, is_share=False, title="ECE"),
    "top5_accuracy": Metric(counts_samples=True),
    "mAP": Metric(title="mAP"),
    "exact_match": Metric(counts_samples=True),
    "mae": Metric(higher_is_better=False, is_share=False, title="MAE"),
    "rmse": Metric(higher_is_better=False, is_share=False, title="RMSE"),
    "r2": Metric(is_share=False, title="R²"),
}
# How the names of metrics begin of which less is better, a user's own among them.
LOWER_IS_BETTER = tuple(name for name, metric in METRICS.items() if not metric.higher_is_better)


def known_metric(name: str) -> Metric | None:
    """What is known of a metric, or of METRIC/NAME, that of one of several numbers; None of a user's own."""
    return METRICS.get(name.partition("/")[0])


def directions_of(*names: str) -> dict[str, bool]:
    """Whether more is better, of each of these metrics."""
    return {name: METRICS[name.partition("/")[0]].higher_is_better for name in names}
