"""From a composed job to a finished run, and the one loop."""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddp_ft.checkpoint import restore_weights, save_model_folder
from ddp_ft.config import LENGTH, RECIPE, RunConfig, make_config, to_flat
from ddp_ft.contracts import PROBE, TRAIN, LoadReport
from ddp_ft.data import derive_seed
from ddp_ft.distributed import connect, pick_device
from ddp_ft.engine import averaged_statistics
from ddp_ft.environment import Launch
from ddp_ft.inference import describe_model
from ddp_ft.interrupt import StopRequest
from ddp_ft.job import Job, Phase, Request, compose, open_folder, restore, save
from ddp_ft.models.freezing import frozen_table
from ddp_ft.optim import set_rates
from ddp_ft.phases import close_probe, enter_stage, measure, open_phase, stage_at
from ddp_ft.plan import describe_grade
from ddp_ft.progress import Best, Stopwatch
from ddp_ft.runfolder import RunFolder, check_same_recipe
from ddp_ft.schedule import Plateau, is_due
from ddp_ft.tasks import describe_choice
from ddp_ft.trackers import Console, FanOut, make_console, make_trackers

# --max-minutes becomes a number of steps once so many were timed.
STEPS_TO_MEASURE = 20


def fine_tune(request: Request, launch: Launch) -> str:
    """Run or continue a run; gives its status, "done" or "stopped". Raises UserError for what the user can mend."""
    config = make_config(*request.layers)
    device = pick_device(config.compute.device, launch)
    with StopRequest().listening() as stop, connect(launch, device, config.compute.timeout_minutes) as world:
        console = make_console(world.is_main)
        folder = RunFolder(request.run_dir)
        stored_plan = world.from_main(lambda: folder.read_json("plan.json")) or {}
        # What `auto` became at the first start holds for all others.
        config = make_config(*request.layers, recipe=stored_plan.get("recipe"))
        if world.from_main(lambda: _is_finished(folder, config, request)):
            console.say(f"{folder.path} holds this run, finished. Add --extend with more --epochs to lengthen it.")
            return "done"
        job, report = compose(config, request, world, launch)
        _introduce(job, report, stored_plan, console)
        if request.dry_run:
            console.say("Dry run: nothing was trained and nothing was written.")
            return "done"
        open_folder(job)
        restore(job)
        return _run(job, console, stop)


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


def _run(job: Job, console: Console, stop: StopRequest) -> str:
    texts = {"recipe": (job.folder.path / "config.yaml").read_text(encoding="utf-8")} if job.world.is_main else {}
    progress = job.progress
    trackers = make_trackers(job.folder.path, job.world.is_main, console, progress.step, texts, progress.phase)
    status = "done"
    try:
        if progress.step:
            console.say(f"Going on at step {progress.step} of phase {progress.phase}.")
        if progress.phase == PROBE:
            console.say(f"Probe: computing the features of {job.plan.train_samples + job.plan.val_samples} pictures.")
            status = _train(job, open_phase(job), trackers, console, stop)
            if status == "done":
                _evaluate(job, trackers)
                close_probe(job)
        if status == "done":
            status = _train(job, open_phase(job), trackers, console, stop)
        _finish(job, trackers, status)
    finally:
        trackers.close()
    _say_farewell(job, console, status)
    return status


def _train(job: Job, phase: Phase, trackers: FanOut, console: Console, stop: StopRequest) -> str:
    """The loop: step, log, evaluate, save, stop."""
    config, progress, learner = job.config, job.progress, phase.learner
    steps_per_epoch = phase.sampler.steps_per_epoch
    eval_every = config.eval.every_epochs * steps_per_epoch
    watch, saved_at = Stopwatch(progress, counts=phase.name == TRAIN), time.monotonic()
    batches = phase.batches(progress.step)
    console.start(progress.step, job.steps_of_phase)
    while progress.step < job.steps_of_phase and not _is_stale(job):
        if phase.name == TRAIN and stage_at(job, progress.step) > progress.stage:
            enter_stage(job, progress.stage + 1)
        with watch.step(phase.sampler.batch_length(progress.step)):
            set_rates(learner.optimizer, phase.rate(progress.step, job.steps_of_phase) * _plateau(job).factor)
            torch.manual_seed(derive_seed(config.seed, progress.step, phase.noise))  # dropout and its like
            with watch.waiting():
                micro_batches = next(batches)
            sums = learner.step(micro_batches)
            job.score = None
            if job.ema is not None and phase.name == TRAIN:
                job.ema.update(job.built.module)
            job.window.add(sums.loss, sums.weight)
            progress.step += 1
            console.advance(progress.step)
            if is_due(progress.step, config.log.every_steps, job.steps_of_phase):
                row = _training_row(job, phase, watch, sums.grad_norm)
                trackers.log("train", progress.step, job.epoch, row, phase.name)
            must_stop, must_save = _agree(job, stop, saved_at)
        _fix_budget(job)
        if phase.name == TRAIN and is_due(progress.step, eval_every, job.steps_of_phase):
            _evaluate(job, trackers)
        if must_stop or must_save or _save_is_due(job, phase):
            save(job)
            saved_at = time.monotonic()
        if must_stop and progress.step < job.steps_of_phase:
            return "stopped"
    return "done"


def _training_row(job: Job, phase: Phase, watch: Stopwatch, grad_norm: Tensor) -> dict[str, float]:
    rates = {f"lr/{group['name']}": float(group["lr"]) for group in phase.learner.optimizer.param_groups}
    row = {"loss": job.window.mean(), "grad_norm": float(grad_norm), **rates}
    if phase.name == PROBE:
        return row
    return {**row, "images_per_second": watch.interval_speed(), "data_wait_share": job.progress.data_wait_share}


def _agree(job: Job, stop: StopRequest, saved_at: float) -> tuple[bool, bool]:
    """Whether to stop, and whether to save, the same on all ranks: any rank's request and rank 0's clock count."""
    minutes = job.config.checkpoint.every_minutes
    clock_says_save = job.world.is_main and 0 < minutes * 60 <= time.monotonic() - saved_at
    wishes = job.world.sum(torch.tensor([float(stop.asked), float(clock_says_save)]))
    return bool(wishes[0]), bool(wishes[1])


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


def _is_stale(job: Job) -> bool:
    return 0 < job.config.eval.patience <= job.progress.stale


def _plateau(job: Job) -> Plateau:
    return Plateau(**job.progress.plateau)


def _evaluate(job: Job, trackers: FanOut) -> None:
    """Evaluate the weights, and their average where there is one; keep in best/ what is best so far."""
    assert job.phase is not None
    row: dict[str, float] = {}
    best = job.progress.best.metrics
    before = _score(job, best) if best else -math.inf
    module, ema = job.built.module, job.ema if job.phase.name == TRAIN else None
    for kind in ("raw", "ema") if ema else ("raw",):
        with ema.swapped(module) if ema and kind == "ema" else nullcontext(), averaged_statistics(module, job.world):
            metrics = job.phase.measure()
            row |= {(name if kind == "raw" else f"ema_{name}"): value for name, value in metrics.items()}
            _keep_if_best(job, metrics, kind)
            job.score = max(_score(job, metrics), -math.inf if job.score is None else job.score)
    trackers.log("val", job.progress.step, job.epoch, row, job.phase.name)
    if job.phase.name == TRAIN:
        _count_patience(job, before, row[job.metric])


def _keep_if_best(job: Job, metrics: dict[str, float], weights: str) -> None:
    progress, best = job.progress, job.progress.best
    if best.metrics and _score(job, metrics) <= _score(job, best.metrics):
        return
    progress.best = Best(progress.step, job.epoch, progress.phase, weights, metrics)
    job.world.from_main(lambda: _export_best(job))


def _score(job: Job, metrics: dict[str, float]) -> float:
    """The metric that decides, as a number of which more is better; NaN is worst."""
    value = metrics[job.metric]
    score = value if job.task.higher_is_better(job.metric) else -value
    return -math.inf if math.isnan(score) else score


def _count_patience(job: Job, before: float, value: float) -> None:
    """Count evaluations without a better one, for early stopping and for the plateau schedule."""
    progress, config = job.progress, job.config
    gained = _score(job, progress.best.metrics) - before > config.eval.min_gain
    progress.stale = 0 if gained else progress.stale + 1
    if config.schedule.name == "plateau":
        upwards = job.task.higher_is_better(job.metric)
        schedule = config.schedule
        falls = (schedule.patience, schedule.gamma, schedule.final_factor)
        progress.plateau = asdict(_plateau(job).after(value, upwards, *falls))


def _export_best(job: Job) -> None:
    description = describe_model(
        job.built.spec, job.built.preprocess, job.task, job.splits.schema.names, job.plan.precision
    )
    save_model_folder(job.folder.best, job.built.module.state_dict(), description)


def _finish(job: Job, trackers: FanOut, status: str) -> None:
    """Evaluate the best model on the test set, where there is one, and write summary.json."""
    test: dict[str, float] = {}
    if status == "done" and job.splits.test is not None:
        restore_weights(job.built.module, load_file(job.folder.best / "model.safetensors"))
        test = measure(job, job.splits.test)
        trackers.log("test", job.progress.step, job.epoch, test)
    summary = _summarise(job, status, test)
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
        "stopped_early": _is_stale(job),
        "images_per_second": progress.images_per_second,
        "data_wait_share": progress.data_wait_share,
        "wall_seconds": progress.wall_seconds,
        "restarts": progress.restarts,
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
