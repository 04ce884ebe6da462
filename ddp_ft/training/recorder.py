"""What a run reports while it trains: rows, images, traces, speed, and how far its batch job will get."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ddp_ft.contracts import TRAIN, Batch, Evaluation
from ddp_ft.slurm.walltime import Allocation, Pace
from ddp_ft.texts import metric_figure, plural, sample_noun
from ddp_ft.trackers.console import Console, Outlook, clock
from ddp_ft.trackers.fan_out import PATIENCE, PATIENCE_OF_A_STOP, FanOut, harmless
from ddp_ft.training.media import log_evaluation, log_first_batch, log_histograms
from ddp_ft.training.phase import Phase
from ddp_ft.training.profiler import FOLDER, StepTrace
from ddp_ft.training.progress import STEPS_TO_MEASURE, Stopwatch
from ddp_ft.training.run import Run
from ddp_ft.training.state import TrainState
from ddp_ft.training.system_metrics import machine_use

# A forward pass takes about a third of a training step.
EVALUATION_SHARE = 1 / 3


class Recorder:
    """The console, the trackers, the stopwatch and the profiler of a run. Off rank 0 most of it is silent."""

    def __init__(self, run: Run, state: TrainState, console: Console, trackers: FanOut, allocation: Allocation) -> None:
        self.run, self.state = run, state
        self.console, self.trackers, self.allocation = console, trackers, allocation
        self.watch = Stopwatch(state.progress)
        folder, world = run.folder.path / FOLDER, run.world
        self._trace = StepTrace(run.config.log.profile, folder, world.rank, world.device)
        self._saved_at = 0.0
        self._is_padded = False
        self._evaluations, self._evaluation_seconds, self._evaluation_began = 0, 0.0, 0.0

    def begin(self, phase: Phase) -> None:
        """Record the steps of this phase from now on."""
        self.phase, progress, epoch = phase, self.state.progress, phase.sampler.steps_per_epoch
        self.saved()
        self.console.start(progress.step, phase.last_step(progress), epoch, self._look_ahead)
        self.watch.begin(counts=phase.name == TRAIN)

    def leave(self) -> None:
        """End the display of the phase, and let go of it and of what it holds, such as features."""
        self.console.close()
        del self.phase

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step: trace it if that was asked for, time it, and advance the console's bar."""
        step = self.state.progress.step
        self._trace.before(step + 1, self.phase.name)
        with self.watch.step(self.phase.sampler.batch_length(step)):
            yield
            self.console.advance(self.state.progress.step)

    def wait_for(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """Return the next batch's micro-batches, and count the time as waiting. The first ones are logged."""
        with self.watch.waiting():
            micro_batches = next(batches)
        for volume in map(self.run.model.processor.volume, micro_batches) if self.phase.is_on_data else ():
            if volume is not None:
                self._is_padded = True
                self.watch.count(*volume)
        is_first = self.state.progress.step == 0 and self.phase.name == TRAIN
        if is_first and self.run.world.is_main and self.phase.is_on_data:
            log_first_batch(self.run, micro_batches[0], self.trackers)
        return micro_batches

    def row(self, grad_norm: Tensor) -> None:
        """Log the mean loss since the last row, rates and speed. Collective; waits for the device."""
        progress = self.state.progress
        rates = {f"lr/{group['name']}": float(group["lr"]) for group in self.state.optimizer.param_groups}
        row = {"loss": self.state.window.mean(), "grad_norm": float(grad_norm), **rates}
        if progress.bad_steps:
            row["bad_steps"] = progress.bad_steps
        if self.phase.name == TRAIN:
            machine = self.run.world.largest(machine_use(self.run.world.device))
            row |= self.watch.interval_speed(*self._volume()) | self.watch.interval_saves() | machine
        self._log("train", row)

    def _volume(self) -> list[float]:
        """Return the tokens and places of all ranks since the last row. Collective; empty if samples are not padded."""
        if not self._is_padded:
            return []
        volume: list[float] = self.run.world.sum(torch.from_numpy(self.watch.volume())).tolist()
        return volume

    def after_step(self) -> None:
        """Report, once each, the trace after its last step, and how far the batch job will get."""
        self._report_trace(self._trace.after)
        if self.allocation.wants_forecast and (pace := self._pace()) is not None:
            progress = self.state.progress
            self.print(self.allocation.forecast_once(pace, self.phase.last_step(progress) - progress.step))

    def budgeted(self) -> None:
        """Report the number of steps that --max-minutes became, and expect the end after them."""
        progress, minutes = self.state.progress, self.run.config.train.max_minutes or 0
        last, total = self.phase.last_step(progress), self.phase.total_steps
        given, seconds = f"--max-minutes {minutes:g}", progress.timed_seconds / progress.timed_steps
        self.console.shorten(last)
        if last < total:
            ends = f"training ends after step {last} of {total}, epoch {self.phase.epoch(last):.4g}"
            left = clock(seconds * (last - progress.step))
            self.print(f"{given}: {ends}, eta {left}; the schedule ends there too.")
        elif total * seconds > 60 * minutes:
            self.print(f"{given} is over; the last of {total} steps follows.")
        else:
            self.print(f"{given} is enough for all {total} steps.")

    def evaluating(self) -> None:
        """Report that an evaluation on the validation set begins."""
        self._evaluation_began = time.monotonic()
        self.console.doing(f"evaluating on {plural(len(self.run.splits.val), sample_noun(self.run.splits.val.kind))}")

    def evaluation(self, row: Mapping[str, float], best: Evaluation | None) -> None:
        """Log an evaluation on the validation set; and its charts, if it is the best so far."""
        if self.phase.name == TRAIN:
            self._evaluations += 1
            self._evaluation_seconds += time.monotonic() - self._evaluation_began
        self._log("val", row)
        log_histograms(self.run, self.state.progress.step, self.trackers)
        if best is not None:
            log_evaluation(self.run, self.state.progress, best, "val", self.trackers)

    def testing(self) -> None:
        """Report that the best model is evaluated on the test set."""
        test = self.run.splits.test
        assert test is not None
        self.print(f"Testing the best model ({self.state.progress.best}) on {len(test)} {sample_noun(test.kind)}s.")

    def test(self, evaluation: Evaluation) -> None:
        """Log the evaluation of the best model on the test set."""
        self._log("test", evaluation.metrics)
        log_evaluation(self.run, self.state.progress, evaluation, "test", self.trackers)

    def saved(self) -> None:
        """Note that a checkpoint was made just now."""
        self._saved_at = time.monotonic()

    @property
    def wants_save(self) -> bool:
        """Whether it is time for a checkpoint, by the clock of rank 0."""
        seconds = 60 * self.run.config.checkpoint.every_minutes
        return self.run.world.is_main and 0 < seconds <= time.monotonic() - self._saved_at

    def print(self, text: str, /) -> None:
        """Print a line."""
        self.console.print(text)

    def end(self) -> None:
        """Report a trace that was asked for beyond the last step of training."""
        self._report_trace(lambda step: self._trace.finish())

    def close(self, is_done: bool) -> None:
        """Close the trackers, once images are drawn; a run that was asked to stop waits only a little for them."""
        self._trace.drop()
        self.trackers.close(PATIENCE if is_done else PATIENCE_OF_A_STOP)
        self.watch.look()

    def _log(self, split: str, row: Mapping[str, float]) -> None:
        step, phase = self.state.progress.step, self.phase
        self.trackers.log(split, step, phase.epoch(step), row, phase.name)

    def _pace(self) -> Pace | None:
        """Return the run's speed; None until enough steps were timed."""
        progress, plan, config = self.state.progress, self.run.plan, self.run.config
        if progress.timed_steps < STEPS_TO_MEASURE:
            return None
        step = progress.timed_seconds / progress.timed_steps
        models = len(self.run.evaluated(TRAIN))
        evaluation = models * plan.val_samples / config.train.batch_size * step * EVALUATION_SHARE
        if self._evaluations:
            evaluation = self._evaluation_seconds / self._evaluations
        save = (progress.copy_seconds + progress.stall_seconds) / max(1, progress.saves)
        return Pace(step, evaluation / plan.evaluation_epochs, save / plan.evaluation_epochs, plan.steps_per_epoch)

    def _look_ahead(self) -> Outlook:
        """Return what the live display shows besides the newest row."""
        progress, best, metric = self.state.progress, self.state.progress.best, self.run.metric
        shown = f"{metric} {metric_figure(best.metrics[metric])} ({best})" if best.metrics else ""
        next_step = self.phase.cadence(progress).next_checkpoint(progress.step)
        minutes = self.run.config.checkpoint.every_minutes or math.inf
        pace = self._pace() if self.phase.name == TRAIN else None
        each = pace.epoch / pace.steps_per_epoch if pace else None
        return Outlook(shown, next_step, self._saved_at + 60 * minutes, each)

    def _report_trace(self, finish: Callable[[int], str]) -> None:
        """Report where the trace is, and log which operations took longest; nothing if it is not finished."""
        steps = self.run.config.log.profile
        with harmless(f"no trace of steps {steps}"):
            if table := finish(self.state.progress.step):
                self.print(f"Steps {steps} are traced: {self._trace.file}\nOpen it in https://ui.perfetto.dev.")
                self.trackers.text("profile", self.state.progress.step, f"```\n{table}\n```")
