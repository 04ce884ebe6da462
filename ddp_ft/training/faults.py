"""What a run does about steps that are not finite or short of memory, damaged images, and writes that fail."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from ddp_ft.contracts import TRAIN, Log
from ddp_ft.data.rng import derive_seed
from ddp_ft.distributed.agreement import Decision, joined
from ddp_ft.errors import UserError
from ddp_ft.run_folder.bad_batches import BadBatch, describe_samples, write_bad_batch
from ddp_ft.texts import plural, sample_noun
from ddp_ft.training.data_phase import DataPhase
from ddp_ft.training.phase import Phase
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState

MAKE_ROOM = "Make room in the run folder. The same command then continues from the newest checkpoint that is there."


def take_notes(state: TrainState, phase: Phase, decisions: Sequence[Decision], recorder: Recorder) -> Decision:
    """Record bad steps and damaged images; return the merged decision.

    If some rank gave a step up, return that decision unmerged: it and later steps must be redone, with smaller
    micro-batches or a search for parameters without a gradient. Raises UserError, on every rank, past the configured
    limits.
    """
    for decision in decisions:
        if decision.is_undone:
            remedy = _lower_micro_batch if decision.oom_ranks else _search_unused
            remedy(state, phase, decision, recorder)
            return decision
        _count_bad_steps(state, phase, decision, recorder)
        if decision.damage:
            settle_damage(phase.run, recorder.print)
    return joined(decisions)


# What makes samples of a kind smaller, in messages.
_LOWER = {"image": "Lower --image-size, take", "text": "Lower data.max_length, take"}


def _lower_micro_batch(state: TrainState, phase: Phase, decision: Decision, recorder: Recorder) -> None:
    """Halve the micro-batch on all ranks, from this step on. UserError if it cannot be smaller."""
    run, sampler, plan = phase.run, phase.sampler, phase.run.plan
    least, noun = max(2 if sampler.pairs else 1, run.model.least), sample_noun(run.model.processor.kind)
    most = min(state.micro_batch or sampler.largest_share, sampler.largest_share)
    half = most // 2 // 2 * 2 if sampler.pairs else max(most // 2, least)
    if not least <= half < most:
        why = " where batch norm has one value of each" if least > 1 else ""
        why = " where pairs are mixed" if sampler.pairs else why
        raise UserError(
            f"{decision.oom_ranks} of {run.world.size} process(es) ran out of memory in step {decision.step}, with "
            f"{plural(most, noun)} in a forward pass; it cannot be less{why}.",
            f"{_LOWER.get(noun, 'Take')} a smaller --model, freeze more of it (--freeze), try --precision bf16 or "
            "--set compute.recompute=true, or give each process more memory.",
        )
    state.lower(most, half)
    phase.renew()
    if run.world.is_main:
        run.folder.write_json("plan.json", replace(plan, lowered=state.lowered).to_mapping())
    recorder.print(
        f"Warning: step {decision.step} did not fit into the memory of {decision.oom_ranks} process(es). Micro-batches "
        f"are of {plural(half, noun)} from here on, not {most}; the batch and its {noun}s stay "
        f"(grade {plan.grade_elsewhere} from here on)."
    )


def _search_unused(state: TrainState, phase: Phase, decision: Decision, recorder: Recorder) -> None:
    """Let each step look for parameters without a gradient, on all ranks, from this step on."""
    assert isinstance(phase, DataPhase), "no other sums gradients over ranks"
    phase.search_unused()
    recorder.print(
        f"Note: in step {decision.step} other parameters had a gradient than in a pass on one sample: the forward pass "
        "uses some for part of the inputs only. From here on each step looks for them, which takes a little time; "
        "what is learned is the same as in one process."
    )


def _count_bad_steps(state: TrainState, phase: Phase, decision: Decision, recorder: Recorder) -> None:
    """Count a step that was not finite and so was skipped, and record what it was made of. UserError, on all ranks,
    after too many in a row."""
    run, progress, most = phase.run, state.progress, phase.run.config.train.max_bad_steps
    progress.bad_in_row = progress.bad_in_row + 1 if decision.is_bad else 0
    if not decision.is_bad:
        return
    progress.bad_steps += 1
    if run.world.is_main and phase.name == TRAIN:
        bad = _describe_bad(state, phase, decision)
        recorder.print(write_bad_batch(run.folder.path, bad, state.weights()))
    if progress.bad_in_row > most:
        raise UserError(
            f"The loss or the gradient was not finite in {progress.bad_in_row} steps in a row, up to step "
            f"{decision.step}: loss {decision.loss}, gradient norm {decision.grad_norm}.",
            f"Lower --lr, or try --precision fp32. `ddp-ft replay {run.folder.path} {decision.step}` finds the layer.",
        )


def _describe_bad(state: TrainState, phase: Phase, decision: Decision) -> BadBatch:
    run, step, seed = phase.run, decision.step - 1, phase.run.config.seed
    return BadBatch(
        step=decision.step, epoch=phase.epoch(decision.step),
        samples=describe_samples(run.splits.train, phase.sampler.global_batch(step)), seed=seed,
        noise_seeds=[derive_seed(seed, step, rank) for rank in range(run.world.size)],
        world_size=run.world.size, micro_batch=state.micro_batch, precision=run.plan.precision,
        learning_rates={group["name"]: float(group["lr"]) for group in state.optimizer.param_groups},
        loss_scale=state.scaler.get_scale(), loss=decision.loss / max(decision.weight, 1e-12),
        grad_norm=decision.grad_norm,
    )  # fmt: skip


def check_writes(run: Run, failed: int, known: int, recorder: Recorder) -> int:
    """Warn on each rank of checkpoints that could not be written, and return how many; UserError after too many."""
    if failed > known:
        # Only rank 0 knows the reason, but each node's log must contain the fact.
        reason = f" ({run.writer.error})" if run.writer.error else ""
        text = f"Warning: writing failed {failed} times in a row{reason}; training continues."
        print(f"[rank {run.world.rank}] {text}", file=sys.stderr, flush=True)  # noqa: T201
        recorder.trackers.warn(recorder.state.progress.step, text)
    if failed > run.config.checkpoint.max_failures:
        raise UserError(
            f"Checkpoints could not be written {failed} times in a row: {run.writer.error or 'rank 0 reports why'}.",
            MAKE_ROOM,
        )
    return failed


def write_to_the_end(run: Run) -> None:
    """Wait for what is being written. UserError if it cannot be written."""
    if error := run.world.from_main(run.writer.finish):
        raise UserError(f"The last state of the run could not be written: {error}.", MAKE_ROOM)


def settle_damage(run: Run, log: Log) -> None:
    """Record on all ranks the damaged images that they have met; UserError if there are too many."""
    if run.splits.quarantine is not None:
        run.splits.quarantine.settle(run.world, log)
