"""The end of a batch job's time: when it comes, and what fits in before it. Free of torch."""

import math
import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

# How long before the end of its time a job is told to save, in seconds: `--signal=B:USR2@180` in slurm/*.sbatch.
# Slurm looks at limits every 30 s only, so the signal may come that much earlier.
DEFAULT_LEAD = 180.0
# A job's controller may be busy or away; no run waits for it longer than this, in seconds.
PATIENCE = 5.0


def read_end_time(environ: Mapping[str, str] | None = None) -> float | None:
    """When Slurm will end this job, in seconds since 1970; None outside of Slurm and where nothing tells.

    SLURM_JOB_END_TIME, which Slurm 22.05 does not set yet, else `scontrol show job`, else `squeue`.
    """
    env = os.environ if environ is None else environ
    given = env.get("SLURM_JOB_END_TIME", "")
    if given.isdecimal() and int(given) > 0:
        return float(given)
    job = env.get("SLURM_JOB_ID")
    if not job:
        return None
    shown = re.search(r"\bEndTime=(\S+)", _output_of(["scontrol", "show", "job", "--oneliner", job], env))
    return _seconds(shown.group(1)) if shown else _seconds(_output_of(["squeue", "-h", "-j", job, "-o", "%e"], env))


def _output_of(command: list[str], env: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _seconds(shown: str) -> float | None:
    # Slurm's commands show local time; "Unknown" and "NONE" stand for no limit.
    try:
        return datetime.fromisoformat(shown).timestamp()
    except ValueError:
        return None


def read_lead(environ: Mapping[str, str] | None = None) -> float:
    """How long before the end the job is told to save, in seconds: DDP_FT_LEAD, which the batch scripts set."""
    given = (os.environ if environ is None else environ).get("DDP_FT_LEAD", "")
    return float(given) if given.isdecimal() else DEFAULT_LEAD


def earliest_stop(start: float, end: float | None) -> float:
    """When a job may be told to save at the earliest, in seconds since 1970; 0 if its end is not known.

    The lead may be most of a short job, which would then save as soon as it starts: two thirds are for training.
    """
    return 0.0 if end is None or end < start else end - (end - start) / 3


@dataclass(frozen=True)
class Pace:
    """How fast a run goes: seconds for a step, an evaluation and a save, which both come once an epoch."""

    step: float
    evaluation: float
    save: float
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Seconds of a whole epoch."""
        return self.steps_per_epoch * self.step + self.evaluation + self.save


@dataclass(frozen=True)
class Forecast:
    """What a job's time is good for."""

    epochs: float  # that fit before the job is told to save; no more than are left
    requeues: int | None  # still to be expected until the run is done; None: it would never be
    last_checkpoint: float  # of this job, in seconds since 1970
    is_done: bool  # whether the run ends in this job
    lead_is_short: bool  # whether a step and a save, or an evaluation and a save, may take longer than the lead


def forecast(pace: Pace, steps_left: int, now: float, end: float, lead: float) -> Forecast:
    """What fits in from `now` to `lead` seconds before `end` (seconds since 1970), and how many jobs must follow.

    Those are taken to be as long as what is left of this one.
    """
    work = steps_left / pace.steps_per_epoch * pace.epoch
    usable = max(0.0, end - lead - now)
    per_job = max(0.0, end - now - lead)
    is_done = work <= usable
    epochs = min(work, usable) / pace.epoch if pace.epoch > 0 else 0.0
    return Forecast(
        epochs=epochs,
        requeues=0 if is_done else (math.ceil((work - usable) / per_job) if per_job > 0 else None),
        last_checkpoint=now + work if is_done else max(now, end - lead) + pace.save,
        is_done=is_done,
        lead_is_short=max(pace.step, pace.evaluation) + pace.save > lead,
    )


def describe(found: Forecast, end: float, lead: float) -> str:
    """One line, or two, for the log; times are local, as in Slurm's own commands."""
    limit, last = _clock(end), _clock(found.last_checkpoint)
    if found.is_done:
        text = f"Job ends at {limit}: the rest of the run fits in, and should be done at {last}."
    else:
        text = f"Job ends at {limit}: {found.epochs:.1f} more epochs fit in, last checkpoint at about {last}, "
        text += f"{_count(found.requeues)}."
    if found.lead_is_short:
        text += f"\nSaving may take longer than the {lead:.0f} s it has before the end; "
        text += "give it more with sbatch --signal=B:USR2@SECONDS."
    return text


def _count(requeues: int | None) -> str:
    if requeues is None:
        return "and no run can be done in jobs this short"
    return f"{requeues} requeue{'' if requeues == 1 else 's'} to come"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


@dataclass
class Allocation:
    """The batch job that a run is in. `end` is when it ends, in seconds since 1970; None: nobody knows, and nothing is
    printed. `lead`: how long before that a run saves, in seconds."""

    end: float | None
    lead: float
    has_forecast: bool = False

    @property
    def stop_at(self) -> float | None:
        """When a run stops by itself, should no signal come (seconds since 1970)."""
        return None if self.end is None else max(self.end - self.lead, earliest_stop(time.time(), self.end))

    @property
    def wants_forecast(self) -> bool:
        """Whether the end is known and nothing was said of it yet."""
        return self.end is not None and not self.has_forecast

    def forecast_once(self, pace: Pace, steps_left: int) -> str:
        """How far this job will come; not to be asked for again."""
        assert self.end is not None
        self.has_forecast = True
        return describe(forecast(pace, steps_left, time.time(), self.end, self.lead), self.end, self.lead)


def read_allocation(looks: bool) -> Allocation:
    """The job's end, from Slurm, if this rank `looks` for it."""
    return Allocation(read_end_time() if looks else None, read_lead())
