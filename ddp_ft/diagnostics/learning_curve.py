"""Whether more images would help: the accuracy of a head on frozen features, by the share of the images it learns from.

A head is fitted in a second, so that the curve costs little more than the features, which a run with a probe has kept.
"""

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.contracts import LABEL, Log
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.diagnostics.stored_run import compose_stored
from ddp_ft.distributed.world import Machine
from ddp_ft.errors import UserError
from ddp_ft.features.dataset import FeatureSet, evaluate_head, train_batches
from ddp_ft.models.backbone import head_module
from ddp_ft.run_folder.folder import LEARNING_CURVE, RunFolder
from ddp_ft.training.choice import standard_error
from ddp_ft.training.feature_phase import feature_sets
from ddp_ft.training.plan import read_plan
from ddp_ft.training.run import Run

# Parts of the training set, the smaller ones drawn several times.
SHARES, DRAWS = (1 / 8, 1 / 4, 1 / 2, 1.0), 3
# Passes over the whole set, if the run has no probe; smaller parts get as many steps.
EPOCHS = 20


@dataclass(frozen=True)
class Point:
    """The metric on the validation set of heads that learned from so many images: mean, and deviation over draws; None
    of a single one."""

    images: int
    mean: float
    deviation: float | None


def learning_curve(path: Path, data: Path | None, machine: Machine, log: Log) -> dict[str, Any]:
    """Measure the curve of a run, write it to learning_curve.json in its folder, and return that.

    {"metric", "higher_is_better", "error" (the standard error of the metric on the validation set), "points": [{
    "images", "mean", "deviation"}], "trained" (the run's own best model; null before its first evaluation)}. UserError
    for a run that has no plan yet, and for a network that does not end with its head.
    """
    folder = RunFolder(path)
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"{path} is no run that has begun.", "Expected the folder that train wrote.")
    run, _ = compose_stored(folder, plan, data, machine, log)
    if run.config.model.weights == "none":
        raise UserError(f"{path} began with random weights: their features do not show what more images would bring.")
    if run.model.head_path is None:
        raise UserError(f"{run.config.model.name} does not end with its head, so there are no features to learn from.")
    train, val = feature_sets(run, log)
    points = list(_points(run, train, val))
    trained = folder.summary().get("val", {}).get(run.metric)
    error = standard_error(run.metric, abs(points[-1].mean), len(val))
    content = {
        "metric": run.metric,
        "higher_is_better": run.task.higher_is_better(run.metric),
        "error": error,
        "points": [vars(point) for point in points],
        "trained": trained,
    }
    folder.write_json(LEARNING_CURVE, content)
    return content


def _points(run: Run, train: FeatureSet, val: FeatureSet) -> Iterator[Point]:
    head = head_module(run.model.module, run.model.head_path or "")
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    least = 2 * len(run.task.names) if run.splits.schema.kind == LABEL else 2
    sizes = {max(min(least, len(train)), round(share * len(train))) for share in SHARES}
    orders = [nested_order(run, draw) for draw in range(DRAWS)]
    for images in sorted(sizes):
        values = []
        for order in orders if images < len(train) else orders[:1]:
            head.load_state_dict(start)
            _fit(run, head, chosen_rows(train, order[:images]), len(train))
            values.append(evaluate_head(head, val, run.task, "fp32").metrics[run.metric])
        yield Point(images, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def nested_order(run: Run, draw: int) -> Tensor:
    """An order of the training samples (int64) whose every beginning has the classes in their proportions."""
    source, seed = run.splits.train, run.config.seed
    by_hash = sorted(range(len(source)), key=lambda index: hashlib.sha256(f"{seed},{draw},{index}".encode()).digest())
    if run.splits.schema.kind != LABEL:
        return torch.tensor(by_hash)
    classes = source.targets.tolist()
    totals = Counter(classes)
    seen = dict.fromkeys(totals, 0)
    place: dict[int, float] = {}
    for index in by_hash:
        place[index] = (seen[classes[index]] + 0.5) / totals[classes[index]]
        seen[classes[index]] += 1
    return torch.tensor(sorted(by_hash, key=place.__getitem__))


def chosen_rows(features: FeatureSet, rows: Tensor) -> FeatureSet:
    """The features of these samples alone, each as in evaluation."""
    where = rows.to(features.views[0].device)
    there = rows.to(features.targets.device)
    return FeatureSet((features.views[0][where],), features.targets[there], features.weights[there])


def _fit(run: Run, head: nn.Module, train: FeatureSet, whole: int) -> None:
    """Train the head as the probe does, in the steps of the whole set."""
    probe, task = run.config.probe, run.task
    sampler = GlobalOrderSampler(len(train), probe.batch_size, 1, 0, run.config.seed)
    steps = (probe.epochs or EPOCHS) * math.ceil(whole / probe.batch_size)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=probe.lr, weight_decay=probe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    with closing(train_batches(train, sampler, 0, steps, in_one_thread=True)) as batches:
        for [batch] in batches:
            loss, weight = task.loss(head(batch["features"]), batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss / weight.clamp(min=1e-12))
            optimizer.step()
            schedule.step()
