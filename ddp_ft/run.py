"""One run, from what is asked for to its summary: composed, gone on with, trained, reported."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, to_flat
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import PROBE
from ddp_ft.distributed.agreement import StopAgreed
from ddp_ft.distributed.device import deterministic, pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.stop_request import STOP_FILE_VARIABLE, StopRequest
from ddp_ft.distributed.watchdog import watching
from ddp_ft.distributed.world import World, connect
from ddp_ft.reporting.startup_table import introduce
from ddp_ft.reporting.summary import report_at_the_end, say_farewell, summarise
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.folder import STOP_FILE, RunFolder, check_same_recipe
from ddp_ft.run_folder.lease import Lease
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.slurm.walltime import Allocation, read_allocation
from ddp_ft.trackers.console import Console, make_console
from ddp_ft.trackers.fan_out import PATIENCE, PATIENCE_OF_A_STOP, FanOut, make_trackers
from ddp_ft.trackers.rank_log import logging_to
from ddp_ft.trackers.services.registry import service_names
from ddp_ft.training.build import compose
from ddp_ft.training.checkpointing import restore, save
from ddp_ft.training.compile import check_compiling
from ddp_ft.training.faults import settle_damage, write_to_the_end
from ddp_ft.training.loop import report_trace, train
from ddp_ft.training.media import show_evaluation
from ddp_ft.training.open_run import describe_run, open_folder
from ddp_ft.training.phases import close_probe, measure, open_phase
from ddp_ft.training.progress import Stopwatch
from ddp_ft.training.state import Job, Request
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
    allocation = read_allocation(looks=world.is_main)
    stop.deadline = allocation.stop_at
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
        report_trace(job, trackers, console, at_the_end=True)
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
        status = train(job, open_phase(job, console.say), trackers, console, watch, allocation)
        if status == "stopped":
            return status
        close_probe(job)
    phase = open_phase(job, console.say)
    if was_probing:
        save(job, trackers.sync)  # the probe is not to be done again
    return train(job, phase, trackers, console, watch, allocation)


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
