"""Remarks at the start of a run: what may not have the intended effect, and what an expert would warn of."""

import torch

from ddp_ft.contracts import LABEL, LABELS
from ddp_ft.diagnostics.advice import advise, situation_of
from ddp_ft.diagnostics.finding import WARNING, guarded
from ddp_ft.errors import printable, shortened
from ddp_ft.plugins import is_reference
from ddp_ft.trackers.console import Console
from ddp_ft.training.plan import Plan, changed_code
from ddp_ft.training.run import Run


def print_remarks(run: Run, earlier: Plan | None, console: Console, end: float | None) -> None:
    """Print them; `end` is when the batch job ends, in seconds since 1970, or None."""
    for name in changed_code(run.plan.code, earlier.code if earlier else {}):
        file = printable(name.rpartition(":")[0])
        console.print(f"Warning: {file} has changed since this run's last start: what is trained may be another model.")
    for note in (*run.splits.notes, *_notes(run)):
        console.print(f"Note: {note}")
    for finding in guarded("remarks", lambda: advise(situation_of(run, end))):
        if finding.verdict == WARNING:  # no problem: a failure of the remarks themselves is no reason to end a run
            console.print(f"Warning: {finding.name}: {finding.text}. {finding.remedy}")


def _notes(run: Run) -> list[str]:
    """Settings and models that may not have the intended effect."""
    notes = [str(note)] if (note := run.plan.inputs.get("note")) else []
    late = [stage.epoch for stage in run.stages if stage.epoch >= run.config.train.epochs]
    notes += [f"the stage of freeze.schedule that begins at epoch {late[0]} is never reached."] if late else []
    if run.model.unused:
        notes.append(
            f"a forward pass on noise does not use {len(run.model.unused)} of the parameters that learn: "
            f"{shortened(sorted(run.model.unused), 6)}. They stay as they are unless some images use them."
        )
    if run.model.ends_in and run.splits.schema.kind in (LABEL, LABELS) and not is_reference(run.config.loss.name):
        notes.append(
            f"the model's outputs are those of a {run.model.ends_in}, which the loss applies once more, so that it "
            "learns badly: return the logits."
        )
    if run.plan.lowered:
        before, now = run.plan.lowered
        notes.append(f"micro-batches are of {now} images, since an earlier start ran out of memory with {before}.")
    gpus = torch.cuda.device_count()
    if run.world.device.type == "cuda" and not run.distributed and gpus > 1:
        notes.append(
            f"one process drives {gpus} GPUs through DataParallel, which is slow. "
            f"Faster: --processes {gpus}, or torchrun."
        )
    return [*notes, *run.agreement.stop.unheeded()]
