"""What is checked of a run's folder and its disk."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ddp_ft.diagnostics import disk, machine
from ddp_ft.diagnostics.examination import Examination
from ddp_ft.diagnostics.finding import PROBLEM, WARNING, Finding, tried

if TYPE_CHECKING:
    from ddp_ft.training.run import Run


def examine_disk(known: Examination, composed: "Run | None") -> Iterator[Finding]:
    """The disk of the run folder; and what the run will need of it, where that could be composed."""
    from ddp_ft.run_folder.folder import RunFolder, check_same_recipe

    need = None if composed is None else _need(composed)
    yield from disk.all_of(known.asked.run_dir, need, os.environ, known.asked.quick)
    place = disk.nearest_folder(known.asked.run_dir)
    if disk.writable(known.asked.run_dir).verdict == PROBLEM:
        return
    yield machine.locks(place)
    if known.asked.run_dir.is_dir():
        _, other = tried("run folder", lambda: check_same_recipe(RunFolder(place), known.config, extend=True))
        yield from (replace(each, verdict=WARNING) for each in other)


def _need(composed: "Run") -> disk.Need:
    from ddp_ft.models.backbone import feature_width

    config, built = composed.config, composed.model
    tensors = [*built.module.parameters(), *built.module.buffers()]
    features = 0
    if config.probe.epochs or config.freeze.cache_features:
        rows = composed.plan.train_samples * config.freeze.views + composed.plan.val_samples
        features = min(4 * rows * feature_width(built), int(config.freeze.cache_gb * disk.GIB))
    keep = config.checkpoint
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return disk.need_of(size, config.optim.name, bool(config.ema.decay), keep.keep + keep.keep_best, features)
