"""From a composed job to a finished run, and the one loop."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddp_ft.checkpoint import restore_weights, save_model_folder
from ddp_ft.config import RECIPE, RunConfig, to_flat
from ddp_ft.contracts import Batch, LoadReport, Source
from ddp_ft.data import EvalLoader, TrainLoader, derive_seed, eval_transform, train_transform
from ddp_ft.distributed import connect, pick_device
from ddp_ft.engine import Scorer, averaged_statistics
from ddp_ft.environment import Launch
from ddp_ft.inference import EVAL_CHUNK, describe_model
from ddp_ft.interrupt import StopRequest
from ddp_ft.job import Job, Request, compose, open_folder, restore, save
from ddp_ft.optim import set_rates
from ddp_ft.plan import describe_grade, rate_at
from ddp_ft.progress import Best, Stopwatch
from ddp_ft.runfolder import RunFolder, check_same_recipe
from ddp_ft.schedule import is_due
from ddp_ft.trackers import Console, FanOut, make_console, make_trackers


def fine_tune(config: RunConfig, request: Request, launch: Launch) -> str:
    """Run or continue a run; gives its status, "done" or "stopped". Raises UserError for what the user can mend."""
    device = pick_device(config.compute.device, launch)
    with StopRequest().listening() as stop, connect(launch, device, config.compute.timeout_minutes) as world:
        console = make_console(world.is_main)
        folder = RunFolder(request.run_dir)
        if world.from_main(lambda: _is_finished(folder, config, request)):
            console.say(f"{folder.path} holds this run, finished. Add --extend with more --epochs to lengthen it.")
            return "done"
        job, report = compose(config, request, world, launch, console)
        stored_plan = world.from_main(lambda: folder.read_json("plan.json"))
        _introduce(job, report, stored_plan, console)
        if request.dry_run:
            console.say("Dry run: nothing was trained and nothing was written.")
            return "done"
        open_folder(job)
        restore(job)
        return _run(job, console, stop)


def _is_finished(folder: RunFolder, config: RunConfig, request: Request) -> bool:
    check_same_recipe(folder, config, request.extend)
    stored, summary = folder.stored_config(), folder.read_json("summary.json")
    if stored is None or summary is None:
        return False
    return summary["status"] == "done" and stored.train.epochs == config.train.epochs


def _introduce(job: Job, report: LoadReport, stored_plan: dict[str, Any] | None, console: Console) -> None:
    plan, module = job.plan, job.built.module
    parameters = sum(p.numel() for p in module.parameters())
    side = " x ".join(str(pixels) for pixels in job.built.preprocess.size)
    rows = {
        "data": f"{job.config.data.path}: {plan.train_samples} train, {plan.val_samples} val, "
        f"{len(job.splits.schema.classes)} classes",
        "task": plan.task,
        "model": f"{job.config.model.name}: {parameters / 1e6:.2f} M parameters, input {side}",
        "weights": str(report),
        "steps": f"{plan.total_steps} = {job.config.train.epochs} epochs x {plan.steps_per_epoch}, "
        f"global batch {job.config.train.batch_size}",
        "machine": f"{plan.world_size} x {plan.device}, {plan.threads} threads and {plan.workers} loader workers each, "
        f"{plan.precision}{', channels_last' if plan.channels_last else ''}",
        "grade": describe_grade(plan, stored_plan),
        "run folder": str(job.folder.path),
    }
    console.table("ddp_ft", rows)
    for note in job.splits.notes:
        console.say(f"Note: {note}")


def _run(job: Job, console: Console, stop: StopRequest) -> str:
    texts = {"recipe": (job.folder.path / "config.yaml").read_text(encoding="utf-8")} if job.world.is_main else {}
    trackers = make_trackers(job.folder.path, job.world.is_main, console, job.progress.step, texts)
    try:
        if job.progress.step:
            console.say(f"Going on at step {job.progress.step} of {job.plan.total_steps}.")
        console.start(job.progress.step, job.plan.total_steps)
        status = _train(job, trackers, console, stop)
        _finish(job, trackers, status)
    finally:
        trackers.close()
    _say_farewell(job, console, status)
    return status


def _train(job: Job, trackers: FanOut, console: Console, stop: StopRequest) -> str:
    """The loop: step, log, evaluate, save, stop."""
    config, plan, progress = job.config, job.plan, job.progress
    total, eval_every = plan.total_steps, config.eval.every_epochs * plan.steps_per_epoch
    watch, saved_at = Stopwatch(progress), time.monotonic()
    batches = iter(_train_batches(job))
    while progress.step < total:
        images = job.sampler.batch_length(progress.step)
        with watch.step(images):
            set_rates(job.learner.optimizer, rate_at(config, plan, progress.step))
            torch.manual_seed(derive_seed(config.seed, progress.step, job.world.rank))  # dropout and its like
            with watch.waiting():
                micro_batches = next(batches)
            sums = job.learner.step(micro_batches)
            job.window.add(sums.loss, sums.weight)
            progress.step += 1
            console.advance(progress.step)
            if is_due(progress.step, config.log.every_steps, total):
                trackers.log("train", progress.step, job.epoch, _training_row(job, watch, sums.grad_norm))
            must_stop, must_save = _agree(job, stop, saved_at)
        if is_due(progress.step, eval_every, total):
            _evaluate(job, trackers)
        if must_stop or must_save or _save_is_due(job):
            save(job)
            saved_at = time.monotonic()
        if must_stop and progress.step < total:
            return "stopped"
    return "done"


def _train_batches(job: Job) -> Iterator[list[Batch]]:
    return iter(
        TrainLoader(
            job.splits.train,
            train_transform(job.built.preprocess, job.config.augment),
            job.sampler,
            job.config.train.micro_batch,
            job.plan.workers,
            start_step=job.progress.step,
            total_steps=job.plan.total_steps,
            pin_memory=job.world.device.type == "cuda",
        )
    )


def _training_row(job: Job, watch: Stopwatch, grad_norm: Tensor) -> dict[str, float]:
    rates = {f"lr/{group['name']}": float(group["lr"]) for group in job.learner.optimizer.param_groups}
    return {
        "loss": job.window.mean(),
        "grad_norm": float(grad_norm),
        **rates,
        "images_per_second": watch.interval_speed(),
        "data_wait_share": job.progress.data_wait_share,
    }


def _agree(job: Job, stop: StopRequest, saved_at: float) -> tuple[bool, bool]:
    """Whether to stop, and whether to save, the same on all ranks: any rank's request and rank 0's clock count."""
    minutes = job.config.checkpoint.every_minutes
    clock_says_save = job.world.is_main and 0 < minutes * 60 <= time.monotonic() - saved_at
    wishes = job.world.sum(torch.tensor([float(stop.asked), float(clock_says_save)]))
    return bool(wishes[0]), bool(wishes[1])


def _save_is_due(job: Job) -> bool:
    step, every = job.progress.step, job.config.checkpoint.every_steps
    return is_due(step, job.plan.steps_per_epoch, job.plan.total_steps) or (every > 0 and step % every == 0)


def _evaluate(job: Job, trackers: FanOut) -> None:
    """Evaluate on the validation set; keep the model in best/ if it is the best so far."""
    with averaged_statistics(job.built.module, job.world):
        metrics = _measure(job, job.splits.val)
        trackers.log("val", job.progress.step, job.epoch, metrics)
        if _is_better(job, metrics):
            job.progress.best = Best(job.progress.step, job.epoch, metrics)
            job.world.from_main(lambda: _export_best(job))


def _measure(job: Job, source: Source) -> dict[str, float]:
    loader = EvalLoader(
        source,
        eval_transform(job.built.preprocess),
        EVAL_CHUNK,
        job.world.size,
        job.world.rank,
        job.plan.workers,
    )
    scorer = Scorer(job.built.module, job.task, job.prepare, job.world, job.plan.precision)
    return scorer.evaluate(loader, len(source))


def _is_better(job: Job, metrics: dict[str, float]) -> bool:
    best, metric = job.progress.best, job.config.eval.metric
    if best.step == 0 or math.isnan(best.metrics[metric]):
        return True
    gain = metrics[metric] - best.metrics[metric]
    return gain > 0 if job.task.higher_is_better(metric) else gain < 0


def _export_best(job: Job) -> None:
    description = describe_model(
        job.built.spec, job.built.preprocess, job.task.name, job.splits.schema.classes, job.plan.precision
    )
    save_model_folder(job.folder.best, job.built.module.state_dict(), description)


def _finish(job: Job, trackers: FanOut, status: str) -> None:
    """Evaluate the best model on the test set, where there is one, and write summary.json."""
    test: dict[str, float] = {}
    if status == "done" and job.splits.test is not None:
        restore_weights(job.built.module, load_file(job.folder.best / "model.safetensors"))
        test = _measure(job, job.splits.test)
        trackers.log("test", job.progress.step, job.epoch, test)
    summary = _summarise(job, status, test)
    trackers.finish(to_flat(job.config, [RECIPE]), {f"val/{k}": v for k, v in job.progress.best.metrics.items()})
    job.world.from_main(lambda: job.folder.write_json("summary.json", summary))


def _summarise(job: Job, status: str, test: dict[str, float]) -> dict[str, Any]:
    progress = job.progress
    return {
        "status": status,
        "step": progress.step,
        "epoch": round(job.epoch, 4),
        "val": progress.best.metrics,
        **({"test": test} if test else {}),
        "best_step": progress.best.step,
        "best_epoch": round(progress.best.epoch, 4),
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
    metrics = {name: f"{value:.4f}" for name, value in job.progress.best.metrics.items()}
    console.table(f"Best model, after epoch {job.progress.best.epoch:g}: {job.folder.best}", metrics)
