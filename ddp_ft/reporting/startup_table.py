"""The table that a run prints at its start."""

from collections.abc import Iterator

from ddp_ft.contracts import LoadReport
from ddp_ft.diagnostics.expected_time import expected_time
from ddp_ft.diagnostics.finding import PROBLEM, guarded, tried
from ddp_ft.models.freezing import frozen_table
from ddp_ft.models.introspection import Trial, flops_per_sample
from ddp_ft.reporting.data_row import describe_data
from ddp_ft.reporting.remarks_at_start import print_remarks
from ddp_ft.tasks.registry import describe_choice
from ddp_ft.texts import count, plural, sample_noun
from ddp_ft.trackers.console import Console
from ddp_ft.training.plan import Plan, describe_grade
from ddp_ft.training.run import Run


def print_start(run: Run, report: LoadReport, earlier: Plan | None, console: Console, end: float | None = None) -> None:
    """Print the table at the start: the settings and what they were resolved to; and an expert's remarks.

    `end` is when the batch job ends, in seconds since 1970; None: it is not known.
    """
    if not run.world.is_main:
        return
    plan, module = run.plan, run.model.module
    # Who asks for a number of epochs is not kept waiting for the estimate.
    found = guarded("time", lambda: [expected_time(run)]) if plan.why_epochs and earlier is None else []
    expected = [each for each in found if each.verdict != PROBLEM]  # a network that noise ends has no estimate
    compiled = {"true": ", compiled", "regional": ", blocks compiled"}.get(run.config.compute.compile, "")
    rows = {
        "data": describe_data(run),
        "recipe": f"{plan.recipe}: {run.why_recipe}",
        "task": describe_choice(run.config, run.splits.schema),
        "model": f"{run.config.model.name}: {', '.join(_sizes_of_model(run))}",
        "weights": str(report),
        **({"adapter": str(run.model.adapter)} if run.model.adapter else {}),
        **frozen_table(module, run.stages[0].frozen),
        "steps": _steps(run),
        **({"time": expected[0].text} if expected else {}),
        "machine": f"{plan.world_size} x {plan.device}, {plural(plan.threads, 'thread')} and "
        f"{plural(plan.workers, 'loader worker')} each, "
        f"{plan.precision}{', channels_last' if plan.channels_last else ''}{compiled}",
        "grade": describe_grade(plan, earlier),
        "run folder": str(run.folder.path),
    }
    console.table("ddp_ft", rows)
    print_remarks(run, earlier, console, end, expected)


def _steps(run: Run) -> str:
    """The number of steps and, if nobody asked for it, why it is so many."""
    plan = run.plan
    steps = f"{count(plan.total_steps)} = {plural(plan.epochs, 'epoch')} x {count(plan.steps_per_epoch)}"
    why = f" ({plan.why_epochs})" if plan.why_epochs else ""
    return f"{steps}{why}, global batch size {run.config.train.batch_size}"


def _sizes_of_model(run: Run) -> Iterator[str]:
    module, trial = run.model.module, Trial(run.model.processor, run.model.call)
    yield plural(sum(p.numel() for p in module.parameters()), "parameter")
    if flops := tried("flops", lambda: flops_per_sample(module, trial))[0]:
        giga, noun = flops >= 1e8, sample_noun(run.splits.train.kind)
        yield f"{flops / (1e9 if giga else 1e6):.3g} {'G' if giga else 'M'}FLOP per {noun}"
    if shape := run.model.processor.shape():
        yield f"input {' x '.join(map(str, shape))}"
