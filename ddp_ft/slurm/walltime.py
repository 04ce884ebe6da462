"""The end of a batch job's time: when it is, and how much training fits in before it. Free of torch."""

import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from ddp_ft.distributed.environment import number_or, output_of
from ddp_ft.texts import plural

# How long before the end of its time a job is asked to save, in seconds: `--signal=B:USR2@180` in slurm/*.sbatch.
# Slurm checks limits every 30 s only, so the signal may come that much earlier.
DEFAULT_LEAD = 180
# Slurm's controller may be busy or down; no run waits for it longer than this, in seconds.
PATIENCE = 5.0


def read_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """When Slurm will end this job, in seconds since 1970; None outside of Slurm, or if that is not known.

    From SLURM_JOB_END_TIME, which Slurm 22.05 does not set yet, else `scontrol show job`, else `squeue`.
    """
    if end := number_or(0, environ, "SLURM_JOB_END_TIME"):
        return float(end)
    job = environ.get("SLURM_JOB_ID")
    if not job:
        return None
    ask = partial(output_of, seconds=PATIENCE, env=dict(environ))
    found = re.search(r"\bEndTime=(\S+)", ask(["scontrol", "show", "job", "--oneliner", job]) or "")
    return _seconds(found[1] if found else ask(["squeue", "-h", "-j", job, "-o", "%e"]) or "")


def _seconds(text: str) -> float | None:
    # Slurm's commands print local time; "Unknown" and "NONE" mean no limit.
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def read_lead(environ: Mapping[str, str] = os.environ) -> float:
    """How long before the end the job is asked to save, in seconds: DDP_FT_LEAD, which the batch scripts set."""
    return float(number_or(DEFAULT_LEAD, environ, "DDP_FT_LEAD"))


def earliest_stop(start: float, end: float | None) -> float:
    """The earliest time at which a job may be asked to save, in seconds since 1970; 0 if its end is not known.

    The lead may be most of a short job, which would then save as soon as it starts: two thirds are for training.
    """
    return 0.0 if end is None or end < start else end - (end - start) / 3


@dataclass(frozen=True)
class Pace:
    """How fast a run is: seconds for a step, and for an evaluation and a save, each once an epoch."""

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
    """How far a run gets in a job's time."""

    epochs: float  # that fit in before the job is asked to save; no more than are left
    requeues: int | None  # still to be expected until the run is done; None: it would never be
    last_checkpoint: float  # of this job, in seconds since 1970
    is_done: bool  # whether the run ends in this job
    lead_is_short: bool  # whether a step and a save, or an evaluation and a save, may take longer than the lead


def forecast(pace: Pace, steps_left: int, now: float, end: float, lead: float) -> Forecast:
    """What fits in from `now` to `lead` seconds before `end` (seconds since 1970), and how many jobs must follow.

    Those are assumed to be as long as the rest of this one.
    """
    work = steps_left / pace.steps_per_epoch * pace.epoch
    usable = max(0.0, end - lead - now)
    is_done = work <= usable
    more = math.ceil((work - usable) / usable) if usable > 0 else None
    return Forecast(
        epochs=min(work, usable) / pace.epoch if pace.epoch > 0 else 0.0,
        requeues=0 if is_done else more,
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
        never = "and no run can be done in jobs this short"
        count = never if found.requeues is None else f"{plural(found.requeues, 'requeue')} to come"
        text = f"Job ends at {limit}: {found.epochs:.1f} more epochs fit in, last checkpoint at about {last}, {count}."
    if found.lead_is_short:
        text += f"\nSaving may take longer than the {lead:.0f} s it has before the end; "
        text += "increase it with sbatch --signal=B:USR2@SECONDS."
    return text


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


@dataclass
class Allocation:
    """The batch job that a run is in. `end`: when it ends, in seconds since 1970; None: not known, and not printed.
    `lead`: how long before that a run saves, in seconds."""

    end: float | None
    lead: float
    has_forecast: bool = False

    @property
    def stop_at(self) -> float | None:
        """When a run stops if no signal comes, in seconds since 1970."""
        return None if self.end is None else max(self.end - self.lead, earliest_stop(time.time(), self.end))

    @property
    def wants_forecast(self) -> bool:
        """Whether the end is known and no forecast was made yet."""
        return self.end is not None and not self.has_forecast

    def forecast_once(self, pace: Pace, steps_left: int) -> str:
        """How far the run will get in this job, as text; it is made once."""
        assert self.end is not None
        self.has_forecast = True
        return describe(forecast(pace, steps_left, time.time(), self.end, self.lead), self.end, self.lead)


def read_allocation(looks: bool) -> Allocation:
    """The batch job, with its end if this rank `looks` for it."""
    return Allocation(read_end_time() if looks else None, read_lead())
