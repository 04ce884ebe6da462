"""What trackers have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ddp_ft.contracts import TRAIN


class Tracker:
    """Where metrics go. Each tracker overrides what it can record; this one records nothing."""

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Record a row of metrics of `split` ("train", "val" or "test") at a step of that phase (PROBE or TRAIN)."""

    def warn(self, step: int, text: str) -> None:
        """Record a warning."""

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Record an image, as the bytes of a PNG."""

    def pr_curve(self, tag: str, step: int, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """Record a precision-recall curve over all thresholds; `truth` and `scores` are N each."""

    def histogram(self, tag: str, step: int, values: NDArray[np.float32]) -> None:
        """Record the distribution of values; some may not be finite."""

    def graph(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Record a model's graph, traced on these inputs."""

    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text in Markdown."""

    def sync(self) -> None:
        """Make durable what was logged; may be called from another thread. Raises OSError if that fails."""

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Record the end of the run: its recipe, and the metrics of its best model."""

    def hang_up(self) -> None:
        """Prepare to close: no more rows will come."""

    def close(self) -> None:
        """Flush and close files."""
