"""The loop: evaluate, step, log, save, stop."""

import math
import time
from contextlib import closing

from torch import Tensor

from ddp_ft.contracts import PROBE, TRAIN
from ddp_ft.data.micro_batches import Recut
from ddp_ft.data.rng import derive_seed, seed_masks
from ddp_ft.slurm.walltime import Allocation, Pace
from ddp_ft.trackers.console import Console, Outlook
from ddp_ft.trackers.fan_out import FanOut, harmless
from ddp_ft.training.checkpointing import save
from ddp_ft.training.compile import make_ready
from ddp_ft.training.faults import check_writes, has_damage, take_notes
from ddp_ft.training.media import show_first_batch
from ddp_ft.training.optim import set_rates
from ddp_ft.training.phases import enter_stage, stage_at
from ddp_ft.training.progress import Stopwatch
from ddp_ft.training.schedule import is_due
from ddp_ft.training.state import Job, Phase
from ddp_ft.training.system_metrics import machine_use
from ddp_ft.training.validation import is_stale, plateau, validate

# So many steps are timed before a forecast is made of them.
STEPS_TO_MEASURE = 20
# A forward pass takes about a third of a training step.
EVALUATION_SHARE = 1 / 3


def train(job: Job, phase: Phase, trackers: FanOut, console: Console, watch: Stopwatch, allocation: Allocation) -> str:
    """Run the loop, and end the loader's workers with it: they ignore signals, and a process with some never exits."""
    with closing(Recut(phase.batches(job.progress.step), keeps=1 + job.agreement.late)) as batches:
        return _loop(job, phase, batches, trackers, console, watch, allocation)


def _loop(
    job: Job, phase: Phase, batches: Recut, trackers: FanOut, console: Console, watch: Stopwatch,
    allocation: Allocation,
) -> str:  # fmt: skip
    """The loop: evaluate, step, log, save, stop. Gives "done" or "stopped"; either way all is saved or being saved."""
    config, progress, learner = job.config, job.progress, phase.learner
    job.saved_at, failed_writes = time.monotonic(), 0
    console.start(progress.step, job.steps_of_phase, phase.sampler.steps_per_epoch, lambda: look_ahead(job, phase))
    watch.begin(counts=phase.name == TRAIN)
    while True:
        if progress.evaluation_due:  # also where an earlier start was stopped before it, or in the middle of it
            console.doing(f"evaluating on {len(job.splits.val)} pictures")
            was_stopped = not validate(job, trackers)
            save(job, trackers.sync)
            if was_stopped:
                return "stopped"
        if progress.step >= job.steps_of_phase or is_stale(job):
            return "done"
        if phase.name == TRAIN and stage_at(job, progress.step) > progress.stage:
            enter_stage(job, progress.stage + 1)
        make_ready(job, phase, console.say)
        job.trace.before(progress.step + 1, phase.name)
        with watch.step(phase.sampler.batch_length(progress.step)):
            set_rates(learner.optimizer, phase.rate(progress.step, job.steps_of_phase) * plateau(job).factor)
            seed_masks(derive_seed(config.seed, progress.step, phase.noise), job.world.device)
            with watch.waiting():
                micro_batches = next(batches)
            show_first_batch(job, phase, micro_batches, trackers)
            flags = job.agreement.flags(_clock_says_save(job), job.writer.failures, has_damage(job))
            sums = learner.step(micro_batches, flags)
            job.score = None
            if job.ema is not None and phase.name == TRAIN:
                job.ema.update(job.built.module, sums.is_bad)
            job.window.add(sums.loss, sums.weight, sums.is_bad)
            progress.step += 1
            console.advance(progress.step)
            decisions = phase.agree(sums, flags, _ends_a_stretch(job, phase))
            decision = take_notes(job, phase, decisions, console)
            if decision.lacking:
                batches.back(progress.step - decision.step + 1, job.plan.cut or 1)
                progress.step = decision.step - 1
                continue
            _log_if_due(job, phase, watch, sums.grad_norm, trackers)
        report_trace(job, trackers, console)
        failed_writes = check_writes(job, decision.failed_writes, failed_writes, trackers)
        _fix_budget(job)
        _forecast_once(job, allocation, console)
        progress.evaluation_due = _evaluation_is_due(job, phase)
        if decision.stop or decision.save or (_save_is_due(job, phase) and not progress.evaluation_due):
            save(job, trackers.sync)
        if decision.stop:
            return "stopped"


def _ends_a_stretch(job: Job, phase: Phase) -> bool:
    """Whether what comes behind this step takes it for done: a row, a checkpoint, an evaluation, a stage, the end."""
    return _row_is_due(job) or _save_is_due(job, phase) or _evaluation_is_due(job, phase)


def _evaluation_is_due(job: Job, phase: Phase) -> bool:
    every = job.config.eval.every_epochs * phase.sampler.steps_per_epoch
    return is_due(job.progress.step, every if phase.name == TRAIN else job.steps_of_phase, job.steps_of_phase)


def _row_is_due(job: Job) -> bool:
    return is_due(job.progress.step, job.config.log.every_steps, job.steps_of_phase)


def _log_if_due(job: Job, phase: Phase, watch: Stopwatch, grad_norm: Tensor, trackers: FanOut) -> None:
    if _row_is_due(job):
        row = _training_row(job, phase, watch, grad_norm)
        trackers.log("train", job.progress.step, job.epoch, row, phase.name)


def _training_row(job: Job, phase: Phase, watch: Stopwatch, grad_norm: Tensor) -> dict[str, float]:
    progress = job.progress
    rates = {f"lr/{group['name']}": float(group["lr"]) for group in phase.learner.optimizer.param_groups}
    row = {"loss": job.window.mean(), "grad_norm": float(grad_norm), **rates}
    if progress.bad_steps:
        row["bad_steps"] = progress.bad_steps
    if phase.name == PROBE:
        return row
    speed = {"images_per_second": watch.interval_speed(), "data_wait_share": progress.data_wait_share}
    return row | speed | watch.interval_saves() | job.world.largest(machine_use(job.world.device))


def _clock_says_save(job: Job) -> bool:
    minutes = job.config.checkpoint.every_minutes
    return job.world.is_main and 0 < minutes * 60 <= time.monotonic() - job.saved_at


def _save_is_due(job: Job, phase: Phase) -> bool:
    step, every = job.progress.step, job.config.checkpoint.every_steps
    at_epoch_end = phase.name == TRAIN and is_due(step, phase.sampler.steps_per_epoch, job.steps_of_phase)
    return at_epoch_end or (every > 0 and step % every == 0)


def _forecast_once(job: Job, allocation: Allocation, console: Console) -> None:
    if allocation.wants_forecast and (pace := _pace(job)) is not None:
        console.say(allocation.forecast_once(pace, job.steps_of_phase - job.progress.step))


def _pace(job: Job) -> Pace | None:
    """How fast the run goes, as soon as steps were timed."""
    progress, plan = job.progress, job.plan
    if progress.timed_steps < STEPS_TO_MEASURE:
        return None
    step = progress.timed_seconds / progress.timed_steps
    batches_of_val = plan.val_samples / job.config.train.batch_size
    evaluation = batches_of_val * step * EVALUATION_SHARE / job.config.eval.every_epochs
    save = (progress.copy_seconds + progress.stall_seconds) / max(1, progress.saves)
    return Pace(step, evaluation, save, plan.steps_per_epoch)


def _fix_budget(job: Job) -> None:
    """Turn --max-minutes into steps, once, so that the schedule stays a function of the step."""
    progress, minutes = job.progress, job.config.train.max_minutes
    if minutes is None or progress.budget is not None or progress.timed_steps < STEPS_TO_MEASURE:
        return

    affordable = job.world.from_main(lambda: int(60 * minutes * progress.timed_steps / progress.timed_seconds))
    progress.budget = min(job.plan.total_steps, max(progress.step, affordable))


def look_ahead(job: Job, phase: Phase) -> Outlook:
    """What the live display says besides the newest row."""
    best, checkpoint, step = job.progress.best, job.config.checkpoint, job.progress.step
    when = "the probe" if best.phase == PROBE else f"epoch {best.epoch:g}"
    shown = f"{job.metric} {best.metrics[job.metric]:.4f} ({when})" if best.metrics else ""
    ends = [every for every in (phase.sampler.steps_per_epoch, checkpoint.every_steps) if every > 0]
    next_step = min([job.steps_of_phase, *((step // every + 1) * every for every in ends)])
    minutes = checkpoint.every_minutes or math.inf
    return Outlook(shown, next_step, job.saved_at + 60 * minutes)


def report_trace(job: Job, trackers: FanOut, console: Console, at_the_end: bool = False) -> None:
    """Behind the last step of --profile, or of the run: where its trace is, and which operations took longest."""
    with harmless(f"no trace of steps {job.config.log.profile}"):
        table = job.trace.finish() if at_the_end else job.trace.after(job.progress.step)
        if table:
            said = f"Steps {job.config.log.profile} are traced: {job.trace.file}"
            console.say(f"{said}\nOpen it in https://ui.perfetto.dev.")
            trackers.text("profile", job.progress.step, f"```\n{table}\n```")
