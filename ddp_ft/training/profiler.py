"""`--profile FIRST-LAST`: a trace of some steps of the training, by torch.profiler."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ddp_ft.config.forms import parse_steps
from ddp_ft.contracts import TRAIN

FOLDER = "profile"
# Lines of the table of operations.
MOST_OPERATIONS = 25


class StepTrace:
    """Traces the steps that log.profile asks for on this rank; without any it does nothing. One step before them is
    traced too and dropped, since the first one includes the start of the profiler."""

    def __init__(self, asked: str | None, folder: Path, rank: int, device: torch.device) -> None:
        self.steps = steps = parse_steps(asked)
        self.folder = folder
        self.name = f"steps_{steps[0]}-{steps[-1]}_rank_{rank}" if steps else ""
        self.device = device
        self._profiler: Any = None
        self._begun = 0  # the newest step that is traced

    def before(self, step: int, phase: str) -> None:
        """Prepare for the next step, counted from 1. Steps of the probe are not traced."""
        if not self.steps or phase != TRAIN or step not in range(self.steps[0] - 1, self.steps[-1] + 1):
            return
        self._begun = step
        if self._profiler is None:
            self._profiler = self._started(warm_up=int(step < self.steps[0]), steps=self.steps[-1] + 1 - step)
        else:
            self._profiler.step()

    def after(self, step: int) -> str:
        """Return the table of operations after the last traced step, else nothing."""
        return self.finish() if self._profiler is not None and step >= self.steps[-1] else ""

    def finish(self) -> str:
        """Write the trace of the steps that were done; return the table of the operations that took longest. Empty if
        nothing was traced: no step yet, or only the one before the first."""
        if self._profiler is None or self._begun < self.steps[0]:
            self.drop()
            return ""
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.file))
        kind = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table: str = profiler.key_averages().table(sort_by=kind, row_limit=MOST_OPERATIONS, max_name_column_width=60)
        self.file.with_name(f"{self.name}.txt").write_text(table, encoding="utf-8")
        return table

    def drop(self) -> None:
        """Stop tracing, if that has not been done: a process that ends while it is traced crashes."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    @property
    def file(self) -> Path:
        """Where the trace is written."""
        return self.folder / f"{self.name}.json.gz"

    def _started(self, warm_up: int, steps: int) -> Any:
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        if self.device.type == "cpu":  # its library reports that there is no GPU as an error
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        active = max(1, steps - warm_up)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing warm-up, if the first step is asked for
            profiler = profile(activities=activities, schedule=schedule(wait=0, warmup=warm_up, active=active + 1))
            profiler.start()
        return profiler
