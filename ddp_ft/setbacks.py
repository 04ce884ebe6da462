"""What a run does about steps that are not finite, pictures that are damaged, and writes that fail."""

import sys

from ddp_ft.bad_batches import BadBatch, BadBatches, describe_samples
from ddp_ft.contracts import TRAIN
from ddp_ft.data import derive_seed
from ddp_ft.errors import UserError
from ddp_ft.interrupt import Decision
from ddp_ft.job import Job, Phase, settle_damage
from ddp_ft.trackers import Console, FanOut


def take_note(job: Job, phase: Phase, decision: Decision, console: Console) -> None:
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


def check_writes(job: Job, failed: int, known: int, trackers: FanOut) -> int:
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


def write_to_the_end(job: Job) -> None:
    """Wait for what is being written. UserError if it cannot be."""
    if error := job.world.from_main(job.writer.finish):
        raise UserError(
            f"The last state of the run could not be written: {error}.",
            "Make room in the run folder. The same command then goes on from the newest checkpoint that is there.",
        )
