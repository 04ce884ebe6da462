"""What a run does about steps that are not finite or short of memory, damaged pictures, and writes that fail."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from ddp_ft.contracts import TRAIN
from ddp_ft.data.rng import derive_seed
from ddp_ft.distributed.agreement import Decision, joined
from ddp_ft.errors import UserError
from ddp_ft.run_folder.bad_batches import BadBatch, BadBatches, describe_samples
from ddp_ft.trackers.console import Console
from ddp_ft.trackers.fan_out import FanOut
from ddp_ft.training.phases import renew_replica
from ddp_ft.training.state import Job, Phase


def take_notes(job: Job, phase: Phase, decisions: Sequence[Decision], console: Console) -> Decision:
    """Write down what was wrong with steps, and give what they want together. UserError for too much of it, on all
    ranks alike. The first that is `lacking` is given as it is: it and those behind it are to be done again."""
    for decision in decisions:
        if decision.lacking:
            _lower_micro_batch(job, phase, decision, console)
            return decision
        _take_note(job, phase, decision, console)
    return joined(decisions)


def _lower_micro_batch(job: Job, phase: Phase, decision: Decision, console: Console) -> None:
    """Halve the micro-batch on all ranks, for all steps from this one on. UserError if it cannot be less."""
    sampler, plan = phase.sampler, job.plan
    least = 2 if sampler.pairs else 1
    most = min(plan.cut or sampler.largest_share, sampler.largest_share)
    half = most // 2 // least * least
    if half < least:
        raise UserError(
            f"{decision.lacking} of {job.world.size} process(es) ran out of memory in step {decision.step}, with "
            f"{most} picture(s) in a forward pass; it cannot be less{' where pairs are mixed' if least == 2 else ''}.",
            "Lower --image-size, take a smaller --model, freeze more of it (--freeze), try --precision bf16 or "
            "--set compute.recompute=true, or give each process more memory.",
        )
    job.plan = replace(plan, lowered=(plan.lowered[0] if plan.lowered else most, half))
    renew_replica(job)
    if job.world.is_main:
        job.folder.write_json("plan.json", job.plan.to_mapping())
    console.say(
        f"Warning: step {decision.step} did not fit into the memory of {decision.lacking} process(es). Micro-batches "
        f"are of {half} pictures from here on, not {most}; the batch and its pictures stay "
        f"(grade {plan.grade_elsewhere} from here on)."
    )


def _take_note(job: Job, phase: Phase, decision: Decision, console: Console) -> None:
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
        micro_batch=job.plan.cut,
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


def has_damage(job: Job) -> bool:
    """Whether this rank has met a damaged picture that is not written down yet."""
    return job.splits.quarantine is not None and job.splits.quarantine.has_news


def settle_damage(job: Job, say: Callable[[str], None]) -> None:
    """On all ranks: write down the damaged pictures that they have met; UserError if there are too many."""
    if job.splits.quarantine is not None:
        job.splits.quarantine.settle(job.world, say)
