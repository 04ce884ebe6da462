"""From a composed job to a finished run, and the one loop."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddp_ft.allocation import STEPS_TO_MEASURE, Allocation, read_allocation
from ddp_ft.bad_batches import BadBatch, BadBatches, describe_samples
from ddp_ft.checkpoint import restore_weights
from ddp_ft.config import LENGTH, RECIPE, RunConfig, make_config, to_flat
from ddp_ft.contracts import PROBE, TRAIN, Batch, LoadReport
from ddp_ft.data import derive_seed, seed_masks
from ddp_ft.distributed import World, connect, deterministic, pick_device
from ddp_ft.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.interrupt import STOP_FILE_VARIABLE, Decision, StopAgreed, StopRequest
from ddp_ft.job import Job, Phase, Request, compose, has_damage, open_folder, settle_damage
from ddp_ft.lease import Lease
from ddp_ft.models.freezing import frozen_table
from ddp_ft.optim import set_rates
from ddp_ft.phases import close_probe, enter_stage, measure, open_phase, stage_at
from ddp_ft.plan import describe_grade
from ddp_ft.progress import Stopwatch
from ddp_ft.runfolder import STOP_FILE, RunFolder, check_same_recipe
from ddp_ft.saving import restore, save
from ddp_ft.schedule import is_due
from ddp_ft.selection import evaluate, is_stale, plateau
from ddp_ft.tasks import describe_choice
from ddp_ft.trackers import Console, FanOut, make_console, make_trackers
from ddp_ft.watchdog import watching


def fine_tune(request: Request, launch: Launch) -> str:
    """Run or continue a run; gives its status, "done" or "stopped". Raises UserError for what the user can mend."""
    config = make_config(*request.layers)
    device = pick_device(config.compute.device, launch)
    stop = StopRequest(_stop_files(request.run_dir), looks=launch.rank == 0)
    one_machine = launch.local_world_size == launch.world_size
    stacks, silence = request.run_dir / "stacks", config.compute.silence_seconds
    with (
        deterministic(config.compute.deterministic),
        stop.listening(),
        connect(launch, device, config.compute.timeout_minutes) as world,
        watching(world, stacks, silence, one_machine),
    ):
        return _fine_tune(request, launch, world, stop)


def _stop_files(run_dir: Path) -> list[Path]:
    named = os.environ.get(STOP_FILE_VARIABLE)
    return [run_dir / STOP_FILE, *([Path(named)] if named else [])]


def _fine_tune(request: Request, launch: Launch, world: World, stop: StopRequest) -> str:
    console = make_console(world.is_main)
    folder = RunFolder(request.run_dir)
    stored_plan = world.from_main(lambda: folder.read_json("plan.json")) or {}
    # What `auto` became at the first start holds for all others.
    config = make_config(*request.layers, recipe=stored_plan.get("recipe"))
    if world.from_main(lambda: _is_finished(folder, config, request)):
        console.say(f"{folder.path} holds this run, finished. Add --extend with more --epochs to lengthen it.")
        return "done"
    job, report = compose(config, request, world, launch, stop)
    _introduce(job, report, stored_plan, console)
    if request.dry_run:
        console.say("Dry run: nothing was trained and nothing was written.")
        return "done"
    lease = Lease(folder.path, lambda: job.progress.step)
    allocation = read_allocation(stop, looks=world.is_main)
    try:
        open_folder(job, lease)
        settle_damage(job, console.say)
        for trouble in restore(job):
            console.say(f"Warning: a checkpoint is damaged and was set aside. {trouble}")
        lease.begin_at(job.progress.step)
        return _run(job, console, allocation)
    finally:
        job.writer.wait()
        lease.release()


def _is_finished(folder: RunFolder, config: RunConfig, request: Request) -> bool:
    stored, summary = folder.stored_config(), folder.read_json("summary.json")
    check_same_recipe(folder, config, request.extend)
    if stored is None or summary is None:
        return False
    return summary["status"] == "done" and to_flat(stored, [LENGTH]) == to_flat(config, [LENGTH])


def _introduce(job: Job, report: LoadReport, stored_plan: dict[str, Any] | None, console: Console) -> None:
    plan, module = job.plan, job.built.module
    parameters = sum(p.numel() for p in module.parameters())
    side = " x ".join(str(pixels) for pixels in job.built.preprocess.size)
    rows = {
        "data": f"{job.config.data.path}: {plan.train_samples} train, {plan.val_samples} val",
        "recipe": f"{plan.recipe}: {job.why_recipe}",
        "task": describe_choice(job.config, job.splits.schema),
        "model": f"{job.config.model.name}: {parameters / 1e6:.2f} M parameters, input {side}",
        "weights": str(report),
        **frozen_table(module, job.stages[0].frozen),
        "steps": f"{plan.total_steps} = {job.config.train.epochs} epochs x {plan.steps_per_epoch}, "
        f"global batch {job.config.train.batch_size}",
        "machine": f"{plan.world_size} x {plan.device}, {plan.threads} threads and {plan.workers} loader workers each, "
        f"{plan.precision}{', channels_last' if plan.channels_last else ''}",
        "grade": describe_grade(plan, stored_plan),
        "run folder": str(job.folder.path),
    }
    console.table("ddp_ft", rows)
    for note in (*job.splits.notes, *_notes(job)):
        console.say(f"Note: {note}")


def _notes(job: Job) -> list[str]:
    """What may not be as it was meant."""
    late = [stage.epoch for stage in job.stages if stage.epoch >= job.config.train.epochs]
    notes = [f"the stage of freeze.schedule that begins at epoch {late[0]} is never reached."] if late else []
    gpus = torch.cuda.device_count()
    if job.world.device.type == "cuda" and not job.distributed and gpus > 1:
        notes.append(
            f"one process drives {gpus} GPUs through DataParallel, which is slow. "
            f"Faster: torchrun --nproc_per_node={gpus} -m ddp_ft.train ..."
        )
    return notes


def _run(job: Job, console: Console, allocation: Allocation) -> str:
    texts = {"recipe": (job.folder.path / "config.yaml").read_text(encoding="utf-8")} if job.world.is_main else {}
    progress = job.progress
    trackers = make_trackers(
        job.folder.path, job.world.is_main, console, progress.step, texts, progress.phase, progress.evaluation_due
    )
    watch = Stopwatch(progress)
    try:
        status = _train_phases(job, trackers, console, watch, allocation)
        settle_damage(job, console.say)  # on CUDA the last step's decision is never asked for
        _write_to_the_end(job)
        if status == "done":
            _finish(job, trackers, watch)
    except StopAgreed:  # outside of training's steps: the newest checkpoint has all there is
        status = "stopped"
    finally:
        job.writer.wait()
        trackers.close()
    watch.look()
    if status == "stopped":
        _write_to_the_end(job)
        job.world.from_main(lambda: job.folder.write_json("summary.json", _summarise(job, status, {})))
    _say_farewell(job, console, status)
    return status


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
    with closing(phase.batches(job.progress.step)) as batches:
        return _loop(job, phase, batches, trackers, console, watch, allocation)


def _loop(
    job: Job, phase: Phase, batches: Iterator[list[Batch]], trackers: FanOut, console: Console, watch: Stopwatch,
    allocation: Allocation,
) -> str:  # fmt: skip
    """The loop: evaluate, step, log, save, stop. Gives "done" or "stopped"; either way all is saved or being saved."""
    config, progress, learner = job.config, job.progress, phase.learner
    saved_at, failed_writes = time.monotonic(), 0
    console.start(progress.step, job.steps_of_phase)
    watch.begin(counts=phase.name == TRAIN)
    while True:
        if progress.evaluation_due:  # also where an earlier start was stopped before it, or in the middle of it
            was_stopped = not evaluate(job, trackers)
            save(job, trackers.sync)
            saved_at = time.monotonic()
            if was_stopped:
                return "stopped"
        if progress.step >= job.steps_of_phase or is_stale(job):
            return "done"
        if phase.name == TRAIN and stage_at(job, progress.step) > progress.stage:
            enter_stage(job, progress.stage + 1)
        with watch.step(phase.sampler.batch_length(progress.step)):
            set_rates(learner.optimizer, phase.rate(progress.step, job.steps_of_phase) * plateau(job).factor)
            seed_masks(derive_seed(config.seed, progress.step, phase.noise), job.world.device)
            with watch.waiting():
                micro_batches = next(batches)
            flags = job.agreement.flags(_clock_says_save(job, saved_at), job.writer.failures, has_damage(job))
            sums = learner.step(micro_batches, flags)
            job.score = None
            if job.ema is not None and phase.name == TRAIN:
                job.ema.update(job.built.module, sums.is_bad)
            job.window.add(sums.loss, sums.weight, sums.is_bad)
            progress.step += 1
            console.advance(progress.step)
            decision = phase.agree(sums, flags)
            _take_note(job, phase, decision, console)
            if is_due(progress.step, config.log.every_steps, job.steps_of_phase):
                row = _training_row(job, phase, watch, sums.grad_norm)
                trackers.log("train", progress.step, job.epoch, row, phase.name)
        failed_writes = _check_writes(job, decision.failed_writes, failed_writes, trackers)
        _fix_budget(job)
        allocation.forecast_once(job, console)
        progress.evaluation_due = _evaluation_is_due(job, phase)
        if decision.stop or decision.save or (_save_is_due(job, phase) and not progress.evaluation_due):
            save(job, trackers.sync)
            saved_at = time.monotonic()
        if decision.stop:
            return "stopped"


def _evaluation_is_due(job: Job, phase: Phase) -> bool:
    every = job.config.eval.every_epochs * phase.sampler.steps_per_epoch
    return is_due(job.progress.step, every if phase.name == TRAIN else job.steps_of_phase, job.steps_of_phase)


def _training_row(job: Job, phase: Phase, watch: Stopwatch, grad_norm: Tensor) -> dict[str, float]:
    progress = job.progress
    rates = {f"lr/{group['name']}": float(group["lr"]) for group in phase.learner.optimizer.param_groups}
    row = {"loss": job.window.mean(), "grad_norm": float(grad_norm), **rates}
    if progress.bad_steps:
        row["bad_steps"] = progress.bad_steps
    if phase.name == PROBE:
        return row
    speed = {"images_per_second": watch.interval_speed(), "data_wait_share": progress.data_wait_share}
    return row | speed | watch.interval_saves()


def _take_note(job: Job, phase: Phase, decision: Decision, console: Console) -> None:
    """Write down what was wrong with a step. UserError for too much of it, on all ranks alike."""
    _count_bad_steps(job, phase, decision, console)
    if decision.damage:
        settle_damage(job, console.say)


def _count_bad_steps(job: Job, phase: Phase, decision: Decision, console: Console) -> None:
    """Count steps that were not finite and so were skipped; write down what they were made of; end a run that has
    nothing else. The same on all ranks."""
    progress, most = job.progress, job.config.train.max_bad_steps
    progress.bad_in_row = progress.bad_in_row + 1 if decision.is_bad else 0
    if not decision.is_bad:
        return
    progress.bad_steps += 1
    if job.world.is_main and phase.name == TRAIN:
        console.say(
            BadBatches(job.folder.path).write(_describe_bad(job, phase, decision), job.built.module.state_dict())
        )
    if progress.bad_in_row > most:
        raise UserError(
            f"The loss or the gradient was not finite in {progress.bad_in_row} steps in a row, up to step "
            f"{decision.step}: loss {decision.loss}, gradient norm {decision.grad_norm}.",
            f"Lower --lr, or try --precision fp32. `ddp-ft replay {job.folder.path} {decision.step}` finds the layer.",
        )


def _describe_bad(job: Job, phase: Phase, decision: Decision) -> BadBatch:
    config, step = job.config, decision.step - 1
    seeds = [derive_seed(config.seed, step, rank) for rank in range(job.world.size)]
    return BadBatch(
        step=decision.step,
        epoch=decision.step / phase.sampler.steps_per_epoch,
        samples=describe_samples(job.splits.train, phase.sampler.global_batch(step)),
        seed=config.seed,
        noise_seeds=seeds,
        world_size=job.world.size,
        micro_batch=config.train.micro_batch,
        precision=job.plan.precision,
        learning_rates={group["name"]: float(group["lr"]) for group in phase.learner.optimizer.param_groups},
        loss_scale=phase.learner.scaler.get_scale(),
        loss=decision.loss / max(decision.weight, 1e-12),
        grad_norm=decision.grad_norm,
    )


def _check_writes(job: Job, failed: int, known: int, trackers: FanOut) -> int:
    """Tell of checkpoints that could not be written, on each rank; UserError after too many in a row."""
    if failed > known:
        # Rank 0 alone knows the reason; each node's log is to have the fact.
        reason = f" ({job.writer.error})" if job.writer.error else ""
        text = f"Warning: writing failed {failed} times in a row{reason}; training goes on."
        print(f"[rank {job.world.rank}] {text}", file=sys.stderr, flush=True)  # noqa: T201
        trackers.warn(job.progress.step, text)
    if failed > job.config.checkpoint.max_failures:
        raise UserError(
            f"Checkpoints could not be written {failed} times in a row: {job.writer.error or 'rank 0 says why'}.",
            "Make room in the run folder. The same command then goes on from the newest checkpoint that is there.",
        )
    return failed


def _write_to_the_end(job: Job) -> None:
    """Wait for what is being written. UserError if it cannot be."""
    if error := job.world.from_main(job.writer.finish):
        raise UserError(
            f"The last state of the run could not be written: {error}.",
            "Make room in the run folder. The same command then goes on from the newest checkpoint that is there.",
        )


def _clock_says_save(job: Job, saved_at: float) -> bool:
    minutes = job.config.checkpoint.every_minutes
    return job.world.is_main and 0 < minutes * 60 <= time.monotonic() - saved_at


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
        test = measure(job, job.splits.test)
        trackers.log("test", job.progress.step, job.epoch, test)
    watch.look()
    summary = _summarise(job, "done", test)
    trackers.finish(to_flat(job.config, [RECIPE]), {f"val/{k}": v for k, v in job.progress.best.metrics.items()})
    job.world.from_main(lambda: job.folder.write_json("summary.json", summary))


def _summarise(job: Job, status: str, test: dict[str, float]) -> dict[str, Any]:
    progress = job.progress
    return {
        "status": status,
        "phase": progress.phase,
        "step": progress.step,
        "epoch": round(job.epoch, 4),
        "val": progress.best.metrics,
        **({"test": test} if test else {}),
        "best_step": progress.best.step,
        "best_epoch": round(progress.best.epoch, 4),
        "best_phase": progress.best.phase,
        "best_weights": progress.best.weights,
        "stopped_early": is_stale(job),
        "images_per_second": progress.images_per_second,
        "data_wait_share": progress.data_wait_share,
        "wall_seconds": progress.wall_seconds,
        "restarts": progress.restarts,
        "bad_steps": progress.bad_steps,
        "checkpoints": progress.saves,
        "save_copy_seconds": progress.copy_seconds,
        "save_stall_seconds": progress.stall_seconds,
        "world_size": job.world.size,
    }


def _say_farewell(job: Job, console: Console, status: str) -> None:
    if status == "stopped":
        console.say(f"Stopped at step {job.progress.step}, saved. The same command goes on from there.")
        return
    best = job.progress.best
    metrics = {name: f"{value:.4f}" for name, value in best.metrics.items()}
    when = "the probe" if best.phase == PROBE else f"epoch {best.epoch:g}"
    average = " (moving average)" if best.weights == "ema" else ""
    console.table(f"Best model, after {when}{average}: {job.folder.best}", metrics)
