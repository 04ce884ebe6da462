"""The loop: evaluate, step, log, save, stop."""

from contextlib import closing

from ddp_ft.contracts import DONE, STOPPED
from ddp_ft.data.micro_batches import Recut
from ddp_ft.training.checkpointing import save
from ddp_ft.training.faults import check_writes, take_notes
from ddp_ft.training.phase import Phase
from ddp_ft.training.progress import STEPS_TO_MEASURE
from ddp_ft.training.recorder import Recorder
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.validation import is_stale, validate


def train(run: Run, state: TrainState, phase: Phase, recorder: Recorder) -> str:
    """Run the loop to the end of the phase; return DONE, or STOPPED if that was asked for. All is saved or being saved.

    UserError on all ranks: out of memory with one sample (two where pairs are mixed), too many bad steps, a disk that
    stays full.
    """
    progress, cadence, failed_writes = state.progress, phase.cadence(state.progress), 0
    recorder.begin(phase)
    # Closing ends the loader's workers: they ignore signals, and a process whose workers still run never exits.
    with closing(Recut(phase.batches(state), 1 + run.agreement.late, run.model.least)) as batches:
        while True:
            if progress.evaluation_due:  # also if an earlier start was stopped before or during it
                was_evaluated = validate(run, state, phase, recorder)
                save(run, state, recorder)
                if not was_evaluated:
                    return STOPPED
            if progress.step >= cadence.last or is_stale(run, progress):
                return DONE
            phase.prepare(state, recorder.print)
            with recorder.step():
                micro_batches = recorder.wait_for(batches)
                flags = run.wishes(save=recorder.wants_save)
                sums = phase.step(state, micro_batches, flags)
                decisions = phase.decide(state, sums, flags, flush=cadence.reads_weights(progress.step))
                decision = take_notes(state, phase, decisions, recorder)
                if decision.is_undone:  # that step and those after it changed nothing
                    batches.back(progress.step - decision.step + 1, state.micro_batch)
                    state.rewind(decision.step)
                    continue
                if cadence.row(progress.step):
                    recorder.row(sums.grad_norm)
            failed_writes = check_writes(run, decision.failed_writes, failed_writes, recorder)
            if _fix_budget(run, state):
                cadence = phase.cadence(progress)
                recorder.budgeted()
            recorder.after_step()
            progress.evaluation_due = cadence.evaluation(progress.step)
            if decision.stop or decision.save or (cadence.checkpoint(progress.step) and not progress.evaluation_due):
                save(run, state, recorder)
            if decision.stop:
                return STOPPED


def _fix_budget(run: Run, state: TrainState) -> bool:
    """Turn --max-minutes into steps, once, so that the schedule stays a function of the step; return whether it did. At
    least one step follows, so that the last one is known to be the last before it is taken."""
    progress, minutes = state.progress, run.config.train.max_minutes
    if minutes is None or progress.budget is not None or progress.timed_steps < STEPS_TO_MEASURE:
        return False
    affordable = run.world.from_main(lambda: int(60 * minutes * progress.timed_steps / progress.timed_seconds))
    progress.budget = min(run.plan.total_steps, max(progress.step + 1, affordable))
    return True
