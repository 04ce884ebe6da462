"""Remarks at the start of a run: what may not have the intended effect, and what an expert would warn of."""

from collections.abc import Sequence

import torch

from ddp_ft.config.runtime import WARNINGS
from ddp_ft.contracts import LABEL, LABELS
from ddp_ft.diagnostics.advice import advise, situation_of
from ddp_ft.diagnostics.finding import WARNING, Finding, guarded
from ddp_ft.errors import printable, shortened
from ddp_ft.plugins import is_reference
from ddp_ft.texts import plural, sample_noun
from ddp_ft.trackers.console import Console
from ddp_ft.training.plan import Plan, changed_code
from ddp_ft.training.run import Run

# Lines of warnings at a start: of more, the one that matters is not read.
MOST_WARNINGS = 3


def print_remarks(
    run: Run, earlier: Plan | None, console: Console, end: float | None, expected: Sequence[Finding]
) -> None:
    """Print them; `end` is when the batch job ends, in seconds since 1970, or None; `expected` is about the time of the
    run."""
    for name in changed_code(run.plan.code, earlier.code if earlier else {}):
        file = printable(name.rpartition(":")[0])
        console.print(f"Warning: {file} has changed since this run's last start: what is trained may be another model.")
    for note in (*run.splits.notes, *_notes(run)):
        console.print(f"Note: {note}")
    found = guarded("remarks", lambda: [*expected, *advise(situation_of(run, end))])
    for line in _warnings(found, run.config.log.silence, is_new=earlier is None):
        console.print(f"Warning: {line}")


def _warnings(found: Sequence[Finding], silenced: str | None, is_new: bool) -> list[str]:
    """At most MOST_WARNINGS lines, what costs most first; of a run that has begun before only what each start decides
    anew."""
    # No problem: a failure of the remarks themselves is no reason to end a run.
    warned = {finding.name.replace(" ", "-"): finding for finding in found if finding.verdict == WARNING}
    left_out = (silenced or "").split(",")
    names = [name for name in WARNINGS if name in warned and name not in left_out and (is_new or name == "job-time")]
    kept = len(names) if len(names) <= MOST_WARNINGS else MOST_WARNINGS - 1
    lines = [f"{warned[name].name}: {warned[name].text}. {warned[name].remedy}" for name in names[:kept]]
    if more := [warned[name].name for name in names[kept:]]:
        lines.append(f"{len(more)} more: {', '.join(more)}. The doctor command, with the same options, describes them.")
    return lines


def _notes(run: Run) -> list[str]:
    """Settings and models that may not have the intended effect."""
    notes = [str(note)] if (note := run.plan.inputs.get("note")) else []
    late = [stage.epoch for stage in run.stages if stage.epoch >= run.plan.epochs]
    # The entries count the epochs that are done; all else on the screen counts from 1.
    notes += [f"the entry {late[0]} of freeze.schedule is never reached: it needs more --epochs."] if late else []
    if run.model.adapter and run.model.adapter.left_out:
        left_out = [f"{path} ({why})" for path, why in run.model.adapter.left_out.items()]
        notes.append(f"no adapter on {plural(len(left_out), 'layer')}: {shortened(left_out, 4)}.")
    if run.model.unused:
        notes.append(
            f"a forward pass on noise does not use {len(run.model.unused)} of the trainable parameters: "
            f"{shortened(sorted(run.model.unused), 6)}. They stay as they are unless some images use them."
        )
    if run.model.ends_in and run.splits.schema.kind in (LABEL, LABELS) and not is_reference(run.config.loss.name):
        notes.append(
            f"the model's outputs are those of a {run.model.ends_in}, which the loss applies once more, so that it "
            "trains badly: return the logits."
        )
    if run.plan.lowered:
        before, now = run.plan.lowered
        noun = sample_noun(run.model.processor.kind)
        notes.append(f"micro-batches are of {now} {noun}s, since an earlier start ran out of memory with {before}.")
    gpus = torch.cuda.device_count()
    if run.world.device.type == "cuda" and not run.distributed and gpus > 1:
        notes.append(
            f"one process drives {gpus} GPUs through DataParallel, which is slow. "
            f"Faster: --processes {gpus}, or torchrun."
        )
    return [*notes, *run.agreement.stop.unheeded()]
