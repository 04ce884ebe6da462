"""The batch job that a run is in: when it ends, and what of the run fits in before."""

import time
from dataclasses import dataclass

from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.slurm.walltime import Pace, describe, earliest_stop, forecast, read_end_time, read_lead
from ddp_ft.trackers.console import Console
from ddp_ft.training.state import Job

# So many steps are timed before a forecast is made of them.
STEPS_TO_MEASURE = 20
# A forward pass takes about a third of a training step.
EVALUATION_SHARE = 1 / 3


@dataclass
class Allocation:
    """`end` is when the job ends, in seconds since 1970; None: nobody knows, and nothing is said."""

    end: float | None
    lead: float
    has_spoken: bool = False

    def forecast_once(self, job: Job, console: Console) -> None:
        """Say how far this job will come, as soon as steps were timed."""
        progress, plan = job.progress, job.plan
        if self.has_spoken or self.end is None or progress.timed_steps < STEPS_TO_MEASURE:
            return
        self.has_spoken = True
        step = progress.timed_seconds / progress.timed_steps
        batches_of_val = plan.val_samples / job.config.train.batch_size
        save = (progress.copy_seconds + progress.stall_seconds) / max(1, progress.saves)
        evaluation = batches_of_val * step * EVALUATION_SHARE / job.config.eval.every_epochs
        pace = Pace(step, evaluation, save, plan.steps_per_epoch)
        found = forecast(pace, job.steps_of_phase - progress.step, time.time(), self.end, self.lead)
        console.say(describe(found, self.end, self.lead))


def read_allocation(stop: StopRequest, looks: bool) -> Allocation:
    """The job's end, from Slurm; and have the run stop in time before it, should no signal come."""
    end, lead = (read_end_time() if looks else None), read_lead()
    if end is not None:
        stop.deadline = max(end - lead, earliest_stop(time.time(), end))
    return Allocation(end, lead)
