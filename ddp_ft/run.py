"""From a composed job to a finished run, and the one loop."""

import os
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ddp_ft.allocation import STEPS_TO_MEASURE, Allocation, read_allocation
from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, to_flat
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import PROBE, TRAIN
from ddp_ft.data.micro_batches import Recut
from ddp_ft.data.rng import derive_seed, seed_masks
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.distributed.device import deterministic, pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.stop_request import STOP_FILE_VARIABLE, StopRequest
from ddp_ft.distributed.watchdog import watching
from ddp_ft.distributed.world import World, connect
from ddp_ft.reporting import report_at_the_end
from ddp_ft.reporting.startup_table import introduce, look_ahead, tell_of_trace
from ddp_ft.reporting.summary import say_farewell, summarise
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.folder import STOP_FILE, RunFolder, check_same_recipe
from ddp_ft.run_folder.lease import Lease
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.trackers.console import Console, make_console
from ddp_ft.trackers.fan_out import PATIENCE, PATIENCE_OF_A_STOP, FanOut, make_trackers
from ddp_ft.trackers.rank_log import logging_to
from ddp_ft.trackers.services.registry import service_names
from ddp_ft.training.build import compose
from ddp_ft.training.checkpointing import restore, save
from ddp_ft.training.compile import check_compiling, make_ready
from ddp_ft.training.faults import check_writes, take_notes, write_to_the_end
from ddp_ft.training.media import show_evaluation, show_first_batch
from ddp_ft.training.open_run import describe_run, open_folder
from ddp_ft.training.optim import set_rates
from ddp_ft.training.phases import close_probe, enter_stage, measure, open_phase, stage_at
from ddp_ft.training.progress import Stopwatch
from ddp_ft.training.schedule import is_due
from ddp_ft.training.state import Job, Phase, Request, has_damage, settle_damage
from ddp_ft.training.system_metrics import machine_use
from ddp_ft.training.validation import evaluate, is_stale, plateau
from ddp_ft.tuning.tune import generators_kept, keys_to_measure, show, tune


def fine_tune(request: Request, launch: Launch) -> str:
    """Run or continue a run; gives its status, "done" or "stopped". Raises UserError for what the user can mend."""
    config = make_config(*request.layers)
    service_names(config.log.trackers)  # a mistake in it is told now
    device = pick_device(config.compute.device, launch)
    stop = StopRequest(_stop_files(request), looks=launch.rank == 0)
    one_machine = launch.local_world_size == launch.world_size
    stacks, silence = request.run_dir / "stacks", config.compute.silence_seconds
    with (
        deterministic(config.compute.deterministic),
        stop.listening(),
        connect(launch, device, config.compute.timeout_minutes) as world,
        watching(world, stacks, silence, one_machine),
    ):
        return _fine_tune(request, launch, world, stop)


def _stop_files(request: Request) -> list[Path]:
    named = os.environ.get(STOP_FILE_VARIABLE)
    own = [] if request.dry_run else [request.run_dir / STOP_FILE]  # an old one is not removed by a dry run
    return [*own, *([Path(named)] if named else [])]


def _fine_tune(request: Request, launch: Launch, world: World, stop: StopRequest) -> str:
    console = make_console(world.is_main, request.config().log.level)
    folder = RunFolder(request.run_dir)
    stored_plan = world.from_main(lambda: folder.read_json("plan.json")) or {}
    # What `auto` became at the first start holds for all others.
    earlier = {name: stored_plan.get(name, nothing) for name, nothing in (("tuned", {}), ("measured", []))}
    request = replace(request, **earlier)
    config = request.config(stored_plan.get("recipe"))
    if world.from_main(lambda: _is_finished(folder, config, request)):
        console.say(f"{folder.path} holds this run, finished. Add --extend with more --epochs to lengthen it.")
        return "done"
    keys = keys_to_measure(request, has_begun=bool(stored_plan))
    check_compiling(config, world, launch)
    allocation = read_allocation(stop, looks=world.is_main)
    with generators_kept() if keys else nullcontext():
        job, report = compose(config, request, world, launch, stop)
    lease = Lease(folder.path, lambda: job.progress.step)
    try:
        if not request.dry_run:
            open_folder(job, lease)
        with nullcontext() if request.dry_run else logging_to(folder.path, world.rank):
            if keys:
                with generators_kept():
                    answer = tune(job, keys, launch.local_world_size)
                show(answer, console)
                request = answer.added_to(request)
                job, report = compose(
                    request.config(stored_plan.get("recipe")), request, world, launch, stop, job.splits
                )
            job.plan = job.plan.after(stored_plan)
            introduce(job, report, stored_plan, console, allocation.end)
            return _begin(job, request, lease, console, allocation)
    except StopAgreed:  # while it was measured
        return _stop_before_training(job, request, console)
    finally:
        job.writer.wait()
        lease.release()


def _begin(job: Job, request: Request, lease: Lease, console: Console, allocation: Allocation) -> str:
    """Begin to write to the run folder, take up what an earlier start left there, and train."""
    if request.dry_run:
        console.say("Dry run: nothing was trained and nothing was written.")
        return "done"
    describe_run(job)
    settle_damage(job, console.say)
    for trouble in restore(job):
        console.say(f"Warning: a checkpoint is damaged and was set aside. {trouble}")
    lease.begin_at(job.progress.step)
    return _run(job, console, allocation)


def _stop_before_training(job: Job, request: Request, console: Console) -> str:
    console.say("Stopped before training. The same command goes on from there.")
    if not request.dry_run:
        restore(job)  # an earlier start may have trained; the summary tells of that
        job.world.from_main(lambda: job.folder.write_json("summary.json", summarise(job, "stopped", {})))
    return "stopped"


def _is_finished(folder: RunFolder, config: RunConfig, request: Request) -> bool:
    stored, summary = folder.stored_config(), folder.read_json("summary.json")
    check_same_recipe(folder, config, request.extend)
    if stored is None or summary is None:
        return False
    return summary["status"] == "done" and to_flat(stored, [LENGTH]) == to_flat(config, [LENGTH])


def _run(job: Job, console: Console, allocation: Allocation) -> str:
    texts = {"recipe": (job.folder.path / "config.yaml").read_text(encoding="utf-8")} if job.world.is_main else {}
    progress = job.progress
    trackers = make_trackers(
        job.folder.path, job.world.is_main, console, progress.step, texts, progress.phase, progress.evaluation_due,
        service_names(job.config.log.trackers),
    )  # fmt: skip
    watch, status = Stopwatch(progress), ""
    try:
        status = _train_phases(job, trackers, console, watch, allocation)
        tell_of_trace(job, trackers, console, at_the_end=True)
        settle_damage(job, console.say)  # on CUDA the last step's decision is never asked for
        write_to_the_end(job)
        if status == "done":
            _finish(job, trackers, watch)
    except StopAgreed:  # outside of training's steps: the newest checkpoint has all there is
        status = "stopped"
    finally:
        job.writer.wait()
        job.trace.drop()
        trackers.close(PATIENCE if status == "done" else PATIENCE_OF_A_STOP)
    watch.look()
    if status == "stopped":
        write_to_the_end(job)
        job.world.from_main(lambda: job.folder.write_json("summary.json", summarise(job, status, {})))
    say_farewell(job, console, status)
    if status == "done":
        _report(job, console)
    return status


def _report(job: Job, console: Console) -> None:
    """On rank 0, outside of collectives. A run that was stopped has no time for it; `ddp-ft report` writes its page."""
    if not job.config.log.report:
        return
    sets = {"val": job.splits.val} | ({"test": job.splits.test} if job.splits.test else {})
    job.world.from_main(lambda: report_at_the_end(job.folder.path, sets, console.say))


def _train_phases(job: Job, trackers: FanOut, console: Console, watch: Stopwatch, allocation: Allocation) -> str:
    progress = job.progress
    if progress.restarts:
        console.say(f"Going on at step {progress.step} of phase {progress.phase}.")
    was_probing = progress.phase == PROBE
    if was_probing:
        status = _train(job, open_phase(job, console.say), trackers, console, watch, allocation)
        if status == "stopped":
            return status
        close_probe(job)
    phase = open_phase(job, console.say)
    if was_probing:
        save(job, trackers.sync)  # the probe is not to be done again
    return _train(job, phase, trackers, console, watch, allocation)


def _train(job: Job, phase: Phase, trackers: FanOut, console: Console, watch: Stopwatch, allocation: Allocation) -> str:
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
            was_stopped = not evaluate(job, trackers)
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
        tell_of_trace(job, trackers, console)
        failed_writes = check_writes(job, decision.failed_writes, failed_writes, trackers)
        _fix_budget(job)
        allocation.forecast_once(job, console)
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


def _fix_budget(job: Job) -> None:
    """Turn --max-minutes into steps, once, so that the schedule stays a function of the step."""
    progress, minutes = job.progress, job.config.train.max_minutes
    if minutes is None or progress.budget is not None or progress.timed_steps < STEPS_TO_MEASURE:
        return

    affordable = job.world.from_main(lambda: int(60 * minutes * progress.timed_steps / progress.timed_seconds))
    progress.budget = min(job.plan.total_steps, max(progress.step, affordable))


def _finish(job: Job, trackers: FanOut, watch: Stopwatch) -> None:
    """Evaluate the best model on the test set, where there is one, and write summary.json. Raises StopAgreed."""
    test: dict[str, float] = {}
    if job.splits.test is not None:
        restore_weights(job.built.module, load_file(job.folder.best / "model.safetensors"))
        evaluation = measure(job, job.splits.test)
        test = evaluation.metrics
        trackers.log("test", job.progress.step, job.epoch, test)
        if job.world.is_main:
            save_evaluation(job.folder.path, "test", evaluation)
        show_evaluation(job, evaluation, "test", trackers)
    watch.look()
    summary = summarise(job, "done", test)
    trackers.finish(to_flat(job.config, [RECIPE]), {f"val/{k}": v for k, v in job.progress.best.metrics.items()})
    job.world.from_main(lambda: job.folder.write_json("summary.json", summary))
