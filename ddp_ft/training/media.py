"""What a run logs besides its curves: the first batch, and samples of what the best model gets right and wrong.

This module decides what is drawn; `charts` draws it, in another process.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddp_ft.contracts import PROBE, Batch, Evaluation
from ddp_ft.distributed.ddp import Trainee
from ddp_ft.run_folder.background_writer import copied
from ddp_ft.tasks.scored.base import MOST_SCATTERS, ScoredSet, most_confused
from ddp_ft.tasks.scored.ranking import ranking_curves
from ddp_ft.trackers import charts
from ddp_ft.trackers.charts import MOST_CLASSES
from ddp_ft.trackers.fan_out import FanOut, harmless
from ddp_ft.training.progress import Progress
from ddp_ft.training.run import Run
from ddp_ft.training.sample_media import IMAGES, log_first_samples, log_samples

# Precision-recall curves of so many classes, the rarest ones: accuracy depends least on them.
MOST_CURVES = 20


def log_first_batch(run: Run, micro_batch: Batch, trackers: FanOut) -> None:
    """Log the first images of a run as the model sees them, with their targets; and its graph, on request."""
    if run.config.log.graph:
        _log_graph(run, trackers)
    if not run.config.log.pictures:
        return
    log_first_samples(run, micro_batch, trackers)


def _log_graph(run: Run, trackers: FanOut) -> None:
    """Log the graph of a copy, since tracing runs the model."""
    trainee, batch = Trainee(copy.deepcopy(run.model.module), run.model.call).eval(), run.model.processor.example(1)
    with harmless("the model's graph is not shown"), torch.no_grad():
        prepared = run.prepare(batch)
        given = _given_to(trainee, prepared)
        trackers.graph(*((trainee, (prepared,)) if given is None else (trainee.module, given)))


def _given_to(trainee: Trainee, prepared: Batch) -> tuple[Any, ...] | None:
    """Return what the call passes to the module; None if by name, which cannot be traced."""
    given: list[tuple[Any, ...] | None] = []

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append(None if named else args)

    with trainee.module.register_forward_pre_hook(note, with_kwargs=True):
        trainee(prepared)
    return given[0]


@harmless("the evaluation is not shown")
def log_evaluation(run: Run, progress: Progress, evaluation: Evaluation, split: str, trackers: FanOut) -> None:
    """Log charts of the best model so far on a set ("val" or "test"), and the samples on which it is worst."""
    if not (run.config.log.pictures and run.world.is_main):
        return
    assert evaluation.predictions is not None and evaluation.records is not None
    scored_set, step = run.task.scored_set(evaluation.predictions, evaluation.records), progress.step
    if scored_set is None:
        return
    source = run.splits.test if split == "test" and run.splits.test else run.splits.val
    prefix = "test/" if split == "test" else "probe/" if progress.phase == PROBE else ""
    group = f"{prefix}{IMAGES}"
    _draw_charts(scored_set, group, step, trackers)
    log_samples(run, scored_set, source, (prefix, step), trackers)
    for name, there, probability in scored_set.decisions(MOST_CURVES):
        trackers.pr_curve(prefix + name, step, there, probability)


def _draw_charts(scored_set: ScoredSet, group: str, step: int, trackers: FanOut) -> None:
    """Draw those of predicted over true values, confusion matrix, reliability diagram and curves that the set has."""

    def draw(tag: str, *chart: Any) -> None:
        trackers.draw(f"{group}/{tag}", step, charts.chart_png, *chart)

    for c, (name, true, predicted) in enumerate(scored_set.points(MOST_SCATTERS)):
        draw(f"2_predicted_over_true_{c}", charts.scatter_chart, true, predicted, name)
    matrix, bins = scored_set.confusion(), scored_set.reliability()
    if matrix is not None:
        shown = most_confused(matrix, MOST_CLASSES)
        names = [scored_set.names[c] for c in shown]
        draw("2_confusion_matrix", charts.confusion_chart, matrix[np.ix_(shown, shown)], names)
    if bins is not None:
        draw("3_reliability_diagram", charts.reliability_chart, bins.confidence, bins.accuracy, bins.samples)
    precision, rates = ranking_curves(scored_set, len(charts.SERIES))
    if rates:
        draw("4_roc_curves", charts.roc_chart, rates)
        draw("4_precision_recall_curves", charts.pr_chart, precision)


def log_histograms(run: Run, step: int, trackers: FanOut) -> None:
    """Log on request how the values of each weight, and of the newest gradient, are distributed."""
    if not (run.config.log.histograms and run.world.is_main):
        return
    parameters = list(run.model.module.named_parameters())
    tensors: list[tuple[str, Tensor]] = [(f"weights/{name}", each) for name, each in parameters]
    tensors += [(f"gradients/{name}", each.grad) for name, each in parameters if each.grad is not None]
    for name, tensor in tensors:
        trackers.histogram(name, step, copied(tensor).float().numpy())
