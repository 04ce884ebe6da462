"""TensorBoard's event files."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ddp_ft.contracts import TRAIN
from ddp_ft.services.curves import points


class TensorBoard:
    """Scalars of a run as one continuous curve over any number of restarts.

    The event files are written anew from the kept rows of metrics.jsonl at each start: SummaryWriter's
    purge_step leaves points of the interrupted start in the served curves.
    """

    def __init__(self, folder: Path, kept: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for title, text in texts.items():
            self._writer.add_text(title, f"```\n{text}\n```")
        for row in kept:
            self._scalars(row, row["time"])

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """One point on each curve."""
        self._scalars({"split": split, "step": step, "phase": phase, "epoch": epoch, **values}, None)

    def _scalars(self, row: Mapping[str, Any], walltime: float | None) -> None:
        for name, value in points(row):
            self._writer.add_scalar(name, value, row["step"], walltime=walltime)

    def warn(self, step: int, text: str) -> None:
        """The text, under its step."""
        self._writer.add_text("warnings", text, step)

    def sync(self) -> None:
        """Nothing: the event files are made anew from metrics.jsonl at a restart."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The recipe beside its final metrics, so that runs compare in the table of hyperparameters."""
        plain = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in settings.items()}
        final = {f"hparam/{name}": value for name, value in metrics.items()}
        self._writer.add_hparams(plain, final, run_name=".")

    def close(self) -> None:
        """Write out what is queued."""
        self._writer.close()
