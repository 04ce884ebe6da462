"""Which model of a run was kept, and how certain it is that it is the best."""

from typing import Any

from ddp_ft.contracts import PROBE
from ddp_ft.data.image.views import PASSES
from ddp_ft.reporting.curve import describe_curve
from ddp_ft.reporting.facts import RunFacts
from ddp_ft.reporting.formats import metric_name, metric_text, noun_of
from ddp_ft.run_folder.checkpoints import Score
from ddp_ft.run_folder.model_folder import VAL_VIEWS
from ddp_ft.tasks.metric_table import known_metric
from ddp_ft.texts import count, plural, readable
from ddp_ft.training.choice import is_near, standard_error
from ddp_ft.training.course import LATEST
from ddp_ft.training.state import EMA


def model_rows(facts: RunFacts) -> dict[str, str]:
    """What the page says of the model that was kept, and of others that might be; empty texts for what is not known."""
    return {
        "Best model": describe_choice(facts),
        "Views at test time": describe_views(facts),
        "Learning curve": describe_curve(facts),
    }


def describe_choice(facts: RunFacts) -> str:
    """When the best model was saved, and how many others the validation set cannot tell from the best evaluation; empty
    before the first one."""
    best = facts.best
    if not best:
        return ""
    where = _place(best) + (", moving average of the weights" if facts.summary.get("best_weights") == EMA else "")
    rows = [row for row in facts.evaluations if row.get(facts.metric) is not None]
    if not rows:
        return where
    sign, name = 1 if facts.higher_is_better else -1, metric_name(facts.metric)
    top = max(rows, key=lambda row: sign * row[facts.metric])
    error = standard_error(facts.metric, abs(top[facts.metric]), facts.plan.val_samples)
    near = sum(is_near(Score(sign * row[facts.metric]), Score(sign * top[facts.metric]), error) for row in rows)
    if near < 2:
        return where
    kept = "the latest of" if facts.plan.choice == LATEST else "one of"
    if not error:
        return f"{where}: one of {near} evaluations with the same {name}"
    best_of_all = f"the best {name}, {metric_text(facts.metric, top[facts.metric])} {_place(top)}"
    samples = plural(facts.plan.val_samples, noun_of(facts.description))
    within = f"{_figure(facts.metric, error)}, the standard error on {samples}"
    return f"{where}: {kept} the {near} of {len(rows)} evaluations that are within {within}, of {best_of_all}"


def _place(best: dict[str, Any]) -> str:
    return (
        "after the probe"
        if best.get("phase") == PROBE
        else f"after epoch {best['epoch']:.4g}, step {count(best['step'])}"
    )


def describe_views(facts: RunFacts) -> str:
    """What the run's views of each image cost and gain; empty without any, and before its end."""
    viewed, alone = facts.summary.get(VAL_VIEWS), facts.summary.get("val", {})
    if not viewed or facts.metric not in alone:
        return ""
    views, name = facts.config.eval.tta, metric_name(facts.metric)
    figures = [metric_text(facts.metric, values[facts.metric]) for values in (viewed, alone)]
    uses = f"{PASSES[views]} passes of each image in test, evaluate and predict (there --tta none: one)"
    return f"{views}: {uses}; {name} on the validation set with them {figures[0]}, without {figures[1]}"


def _figure(metric: str, error: float) -> str:
    known = known_metric(metric)
    return f"{100 * error:.1f} points" if known and known.is_share else readable(error, 2)
