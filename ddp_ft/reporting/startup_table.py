"""What a run says of itself at its start."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ddp_ft.contracts import LoadReport
from ddp_ft.data.class_counts import ClassCounts, count_classes
from ddp_ft.diagnostics.advice import advise, situation_of
from ddp_ft.diagnostics.finding import NOTE, VERDICTS, tried
from ddp_ft.errors import printable
from ddp_ft.models.freezing import frozen_table
from ddp_ft.models.introspection import Trial, flops_per_sample
from ddp_ft.tasks.registry import describe_choice
from ddp_ft.trackers.console import Console
from ddp_ft.training.plan import Plan, describe_grade
from ddp_ft.training.run import Run

T = TypeVar("T")


def introduce(run: Run, report: LoadReport, earlier: Plan | None, console: Console, end: float | None = None) -> None:
    """The table at the start: what was asked for, and what became of it; and what an expert would remark on it.

    `end` is when the batch job ends, in seconds since 1970; None: nobody knows.
    """
    if not run.world.is_main:
        return
    plan, module = run.plan, run.model.module
    rows = {
        "data": f"{run.config.data.path}: {plan.train_samples} train, {plan.val_samples} val{_classes(run)}",
        "recipe": f"{plan.recipe}: {run.why_recipe}",
        "task": describe_choice(run.config, run.splits.schema),
        "model": f"{run.config.model.name}: {', '.join(_sizes_of_model(run))}",
        "weights": str(report),
        **frozen_table(module, run.stages[0].frozen),
        "steps": f"{plan.total_steps} = {run.config.train.epochs} epochs x {plan.steps_per_epoch}, "
        f"global batch {run.config.train.batch_size}",
        "machine": f"{plan.world_size} x {plan.device}, {plan.threads} threads and {plan.workers} loader workers each, "
        f"{plan.precision}{', channels_last' if plan.channels_last else ''}"
        f"{', compiled' if run.config.compute.compile == 'true' else ''}"
        f"{', blocks compiled' if run.config.compute.compile == 'regional' else ''}",
        "grade": describe_grade(plan, earlier),
        "run folder": str(run.folder.path),
    }
    console.table("ddp_ft", rows)
    for note in (*run.splits.notes, *_notes(run)):
        console.say(f"Note: {note}")
    for line in _never_fatal(lambda: _warnings(run, end)) or ():
        console.say(f"Warning: {line}")


def _warnings(run: Run, end: float | None) -> list[str]:
    found = advise(situation_of(run, end))
    worse = [finding for finding in found if VERDICTS.index(finding.verdict) > VERDICTS.index(NOTE)]
    return [f"{finding.name}: {finding.text}. {finding.remedy}" for finding in worse]


def _never_fatal(look: Callable[[], T]) -> T | None:
    """What `look` gives, None where it fails: no remark is worth a run."""
    return tried("remark", look)[0]


def _classes(run: Run) -> str:
    counts = count_classes(run.splits.train, run.splits.schema)
    return "" if counts is None else f"; {describe_counts(counts)}"


def describe_counts(counts: ClassCounts) -> str:
    """The number of classes, and the smallest and the largest of them."""
    (small, fewest), (large, most) = counts.smallest, counts.largest
    if fewest == most:
        return f"{len(counts.names)} classes of {fewest}"
    ratio = f", a ratio of {counts.imbalance:.3g}" if fewest else ""
    return f"{len(counts.names)} classes of {fewest} ({printable(small)}) to {most} ({printable(large)}){ratio}"


def _sizes_of_model(run: Run) -> Iterator[str]:
    module, trial = run.model.module, Trial(run.model.processor, run.model.call)
    parameters = list(module.parameters())
    total, learning = (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))
    yield f"{total / 1e6:.2f} M parameters" + ("" if learning == total else f" ({learning / 1e6:.2f} M learn)")
    if flops := _never_fatal(lambda: flops_per_sample(module, trial)):
        yield f"{flops / 1e9:.3g} GFLOP an image"
    if shape := run.model.processor.shape():
        yield f"input {' x '.join(map(str, shape))}"


def _notes(run: Run) -> list[str]:
    """What may not be as it was meant."""
    late = [stage.epoch for stage in run.stages if stage.epoch >= run.config.train.epochs]
    notes = [f"the stage of freeze.schedule that begins at epoch {late[0]} is never reached."] if late else []
    if run.plan.lowered:
        before, now = run.plan.lowered
        notes.append(f"micro-batches are of {now} images, since an earlier start ran out of memory with {before}.")
    gpus = torch.cuda.device_count()
    if run.world.device.type == "cuda" and not run.distributed and gpus > 1:
        notes.append(
            f"one process drives {gpus} GPUs through DataParallel, which is slow. "
            f"Faster: torchrun --nproc_per_node={gpus} -m ddp_ft.train ..."
        )
    return notes
