"""What happens to a batch job after its ranks have ended: done, started again, or failed. Pure decisions, no torch."""

from dataclasses import dataclass

from ddp_ft.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED

# Starts in a row that crashed without a step, and without a new checkpoint, after which the next one would crash too.
MOST_BARREN_STARTS, MOST_CRASHES = 2, 4

# To the nodes' tasks: a warning before the end (sbatch --signal without B:), and no preemption.
WARNINGS = ("step SIGUSR1", "step SIGUSR2")
ENDED_BY_SIGTERM = 143  # 128 + 15, as shells and srun have it


@dataclass(frozen=True)
class History:
    """Crashes of earlier starts of this job."""

    barren: int = 0  # in a row, without a step
    crashes: int = 0  # in a row, without a new checkpoint


@dataclass(frozen=True)
class Outcome:
    """How one start of the job ended.

    `events` are in their order, since the first one causes others: "job USR2" warns the batch script of the end of its
    time, "job TERM" is Slurm ending it; "step SIGTERM" and the like are signals to the nodes' tasks, from a
    preemption, or from srun once another node has noted a "crash".
    """

    code: int  # of the job step
    status: str  # of this start's summary.json; "" if there is none
    events: tuple[str, ...] = ()
    made_step: bool = False
    new_checkpoint: bool = False
    reason: str = ""  # why Slurm ends the job, as `scontrol show job` has it; "" if that is not known


@dataclass(frozen=True)
class Verdict:
    """Whether to requeue, the exit code if not (or if that fails), the reason, and the crashes to remember."""

    requeue: bool
    code: int
    message: str
    history: History = History()


def decide(outcome: Outcome, history: History, restarts: int, most_restarts: int) -> Verdict:
    """The verdict on a start with that outcome, after so many `restarts`."""
    if outcome.status == "done" or (outcome.code == 0 and not outcome.events and not outcome.status):
        return Verdict(False, EXIT_DONE, "done")
    verdict = _on_end_by_slurm(outcome, history) or _on_interruption(outcome, history) or _on_crash(outcome, history)
    if verdict.requeue and restarts >= most_restarts:
        message = f"{verdict.message}; not requeued, as DDP_FT_MAX_REQUEUES={most_restarts} is reached"
        return Verdict(False, verdict.code, message, verdict.history)
    return verdict


def _on_end_by_slurm(outcome: Outcome, history: History) -> Verdict | None:
    """scancel, a requeue by somebody else, the end of a preemption's grace, or of the job's time."""
    if "job TERM" not in outcome.events:
        return None
    saved = outcome.status == "stopped"
    text = f"ended by Slurm ({outcome.reason or 'reason unknown'}), " + ("saved" if saved else "not saved")
    # Only a job that ran out of time is to continue; a cancelled one never, and Slurm itself starts others again.
    return Verdict(outcome.reason == "TimeLimit", EXIT_STOPPED if saved else EXIT_FAILED, text, history)


def _on_interruption(outcome: Outcome, history: History) -> Verdict | None:
    """A requested stop: a signal to the nodes' tasks (preemption), or the warning before the end."""
    first = outcome.events[0] if outcome.events else ""
    # A preemption may end the tasks while they load Python, before they can handle signals.
    left_no_trace = outcome.code == ENDED_BY_SIGTERM and not (outcome.events or outcome.status or outcome.made_step)
    preempted = (first.startswith("step ") and first not in WARNINGS) or left_no_trace
    if outcome.status != "stopped" and not preempted:
        return None
    why = "interrupted by a signal to its tasks" if preempted else "stopped"
    text = f"{why}, " + ("saved" if outcome.status == "stopped" else "not saved")
    # A preemption during the start is no crash, and no progress either.
    return Verdict(True, EXIT_STOPPED, text, History() if outcome.made_step else history)


def _on_crash(outcome: Outcome, history: History) -> Verdict:
    now = History(
        0 if outcome.made_step or outcome.new_checkpoint else history.barren + 1,
        0 if outcome.new_checkpoint else history.crashes + 1,
    )
    text = f"crashed (exit code {outcome.code})" if outcome.code else "asked to save, and did not"
    if now.barren >= MOST_BARREN_STARTS:
        return Verdict(False, EXIT_FAILED, f"{text}, {now.barren} times in a row without a step; not requeued", now)
    if now.crashes >= MOST_CRASHES:
        text = f"{text}, {now.crashes} times in a row without a checkpoint"
        return Verdict(False, EXIT_FAILED, f"{text}; not requeued", now)
    return Verdict(True, EXIT_FAILED, text, now)
