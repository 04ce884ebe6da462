"""What a run says of itself at its start."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ddp_ft.contracts import LoadReport
from ddp_ft.data.class_counts import ClassCounts, count_classes
from ddp_ft.diagnostics.advice import advise, situation_of
from ddp_ft.diagnostics.finding import NOTE, VERDICTS, tried
from ddp_ft.errors import printable
from ddp_ft.models.flops import flops_per_picture
from ddp_ft.models.freezing import frozen_table
from ddp_ft.tasks.registry import describe_choice
from ddp_ft.trackers.console import Console
from ddp_ft.training.plan import describe_grade
from ddp_ft.training.state import Job

T = TypeVar("T")


def introduce(
    job: Job, report: LoadReport, stored_plan: dict[str, Any] | None, console: Console, end: float | None = None
) -> None:
    """The table at the start: what was asked for, and what became of it; and what an expert would remark on it.

    `end` is when the batch job ends, in seconds since 1970; None: nobody knows.
    """
    if not job.world.is_main:
        return
    plan, module = job.plan, job.built.module
    rows = {
        "data": f"{job.config.data.path}: {plan.train_samples} train, {plan.val_samples} val{_classes(job)}",
        "recipe": f"{plan.recipe}: {job.why_recipe}",
        "task": describe_choice(job.config, job.splits.schema),
        "model": f"{job.config.model.name}: {', '.join(_sizes_of_model(job))}",
        "weights": str(report),
        **frozen_table(module, job.stages[0].frozen),
        "steps": f"{plan.total_steps} = {job.config.train.epochs} epochs x {plan.steps_per_epoch}, "
        f"global batch {job.config.train.batch_size}",
        "machine": f"{plan.world_size} x {plan.device}, {plan.threads} threads and {plan.workers} loader workers each, "
        f"{plan.precision}{', channels_last' if plan.channels_last else ''}"
        f"{', compiled' if job.config.compute.compile == 'true' else ''}"
        f"{', blocks compiled' if job.config.compute.compile == 'regional' else ''}",
        "grade": describe_grade(plan, stored_plan),
        "run folder": str(job.folder.path),
    }
    console.table("ddp_ft", rows)
    for note in (*job.splits.notes, *_notes(job)):
        console.say(f"Note: {note}")
    for line in _never_fatal(lambda: _warnings(job, end)) or ():
        console.say(f"Warning: {line}")


def _warnings(job: Job, end: float | None) -> list[str]:
    found = advise(situation_of(job, end))
    worse = [finding for finding in found if VERDICTS.index(finding.verdict) > VERDICTS.index(NOTE)]
    return [f"{finding.name}: {finding.text}. {finding.remedy}" for finding in worse]


def _never_fatal(look: Callable[[], T]) -> T | None:
    """What `look` gives, None where it fails: no remark is worth a run."""
    return tried("remark", look)[0]


def _classes(job: Job) -> str:
    counts = count_classes(job.splits.train, job.splits.schema)
    return "" if counts is None else f"; {describe_counts(counts)}"


def describe_counts(counts: ClassCounts) -> str:
    """The number of classes, and the smallest and the largest of them."""
    (small, fewest), (large, most) = counts.smallest, counts.largest
    if fewest == most:
        return f"{len(counts.names)} classes of {fewest}"
    ratio = f", a ratio of {counts.imbalance:.3g}" if fewest else ""
    return f"{len(counts.names)} classes of {fewest} ({printable(small)}) to {most} ({printable(large)}){ratio}"


def _sizes_of_model(job: Job) -> Iterator[str]:
    module, size = job.built.module, job.built.preprocess.size
    parameters = list(module.parameters())
    total, learning = (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))
    yield f"{total / 1e6:.2f} M parameters" + ("" if learning == total else f" ({learning / 1e6:.2f} M learn)")
    if flops := _never_fatal(lambda: flops_per_picture(module, size)):
        yield f"{flops / 1e9:.3g} GFLOP a picture"
    yield f"input {' x '.join(str(pixels) for pixels in size)}"


def _notes(job: Job) -> list[str]:
    """What may not be as it was meant."""
    late = [stage.epoch for stage in job.stages if stage.epoch >= job.config.train.epochs]
    notes = [f"the stage of freeze.schedule that begins at epoch {late[0]} is never reached."] if late else []
    if job.plan.lowered:
        before, now = job.plan.lowered
        notes.append(f"micro-batches are of {now} pictures, since an earlier start ran out of memory with {before}.")
    gpus = torch.cuda.device_count()
    if job.world.device.type == "cuda" and not job.distributed and gpus > 1:
        notes.append(
            f"one process drives {gpus} GPUs through DataParallel, which is slow. "
            f"Faster: torchrun --nproc_per_node={gpus} -m ddp_ft.train ..."
        )
    return notes
