"""How far a run is, and how fast: counters that a checkpoint carries."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.contracts import PROBE, TRAIN

# The first steps of a start build kernels and fill queues; they do not count for the speed.
WARM_UP_STEPS = 3
# So many steps are timed before anything is predicted from them.
STEPS_TO_MEASURE = 20


@dataclass
class Best:
    """The best evaluation so far; without metrics: none yet. `weights`: "raw" or "ema" (their moving average)."""

    step: int = 0
    epoch: float = 0.0
    phase: str = TRAIN
    weights: str = "raw"
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        when = "the probe" if self.phase == PROBE else f"epoch {self.epoch:.4g}"
        return f"{when}, moving average" if self.weights == "ema" else when


@dataclass
class Progress:
    """Counters of a run over all its starts. Times are seconds on this rank's clock.

    `step` counts the steps of the phase. `best` is the model that is kept, `top` the metrics of the best evaluation,
    another one where the latest of equally good models is kept. `evaluation_due`: an evaluation comes next. `stage` is
    the stage of unfreezing; `budget` the number of steps that --max-minutes became; `stale` the evaluations since the
    last better one; `length` the keys of run length of this start. `bad_steps` and `bad_in_row` count steps whose loss
    or gradient was not finite; `saves` checkpoints, whose copies took `copy_seconds` of the loop's time.
    `searches_unused`: each step looks for parameters without a gradient, since an earlier one had them elsewhere than
    expected. `tokens` and `places` are those of all ranks' batches in `token_seconds`, of samples that are padded:
    `places` counts padding too.
    """

    phase: str = TRAIN
    step: int = 0
    evaluation_due: bool = False
    length: dict[str, Any] = field(default_factory=dict)
    bad_steps: int = 0
    bad_in_row: int = 0
    saves: int = 0
    copy_seconds: float = 0.0
    stall_seconds: float = 0.0
    stage: int = 0
    budget: int | None = None
    stale: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    searches_unused: bool = False
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    timed_steps: int = 0
    timed_images: int = 0
    timed_seconds: float = 0.0
    wait_seconds: float = 0.0
    warm_up_images: int = 0
    warm_up_seconds: float = 0.0
    tokens: float = 0.0
    places: float = 0.0
    token_seconds: float = 0.0
    best: Best = field(default_factory=Best)
    top: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def from_mapping(values: dict[str, Any]) -> "Progress":
        """Return the progress whose `asdict` a checkpoint has."""
        best = Best(**values["best"])
        return Progress(**{"top": best.metrics, **values, "best": best})  # earlier versions had no other top

    @property
    def images_per_second(self) -> float:
        """Speed of the training steps alone, loading and logging included; that of the warm-up if there was no more."""
        if self.timed_seconds:
            return self.timed_images / self.timed_seconds
        return self.warm_up_images / self.warm_up_seconds if self.warm_up_seconds else 0.0

    @property
    def token_speed(self) -> dict[str, float]:
        """Tokens a second without padding, and the share of padding in batches; empty for samples without padding."""
        return token_speed(self.tokens, self.places, self.token_seconds)

    @property
    def data_wait_share(self) -> float:
        """Share of the training time in which the step waited for its batch."""
        return self.wait_seconds / self.timed_seconds if self.timed_seconds else 0.0


def token_speed(tokens: float, places: float, seconds: float) -> dict[str, float]:
    """The two values of a row of metrics for so many tokens in so many places of batches; empty if there are none."""
    if not (places and seconds):
        return {}
    return {"tokens_per_second": tokens / seconds, "padding_share": 1 - tokens / places}


class Stopwatch:
    """Times the steps of one start into a Progress; evaluation and saving are outside its blocks. The wall clock runs
    from its creation to its last look."""

    def __init__(self, progress: Progress, clock: Any = time.perf_counter) -> None:
        self.progress = progress
        self._clock = clock
        self._counts = True
        self._steps = 0
        self._wait = 0.0
        self._created = clock()
        self._wall_before = progress.wall_seconds
        self._mark = (progress.timed_images, progress.timed_seconds)
        self._batch, self._volume = np.zeros(2), np.zeros(2)
        self._saves = (progress.saves, progress.copy_seconds, progress.stall_seconds)

    def begin(self, counts: bool) -> None:
        """Begin a phase. Unless it `counts`, only the wall clock runs: the probe's steps do not count for the speed."""
        self._counts, self._steps = counts, 0

    def look(self) -> None:
        """Update the wall clock."""
        self.progress.wall_seconds = self._wall_before + self._clock() - self._created

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        begin = self._clock()
        yield
        self._wait = self._clock() - begin

    def count(self, tokens: int, places: int) -> None:
        """Count a micro-batch of this rank, of samples that are padded, to the step that follows."""
        self._batch += (tokens, places)

    def volume(self) -> NDArray[np.float64]:
        """Return the tokens and places that this rank counted in timed steps since the last call."""
        volume, self._volume = self._volume, np.zeros(2)
        return volume

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Around a whole training step of `images` in the global batch."""
        begin = self._clock()
        yield
        self._steps += 1
        self.look()
        if self._counts and self._steps > WARM_UP_STEPS:
            self.progress.timed_steps += 1
            self.progress.timed_images += images
            self.progress.timed_seconds += self._clock() - begin
            self.progress.wait_seconds += self._wait
            self._volume += self._batch
        elif self._counts:
            self.progress.warm_up_images += images
            self.progress.warm_up_seconds += self._clock() - begin
        self._batch = np.zeros(2)

    def interval_speed(self, tokens: float = 0.0, places: float = 0.0) -> dict[str, float]:
        """Return the images per second since the last call, and the share of the training time spent waiting for data;
        of samples that are padded what `token_speed` says of all ranks' counts. Empty during the warm-up."""
        images, seconds = self._mark
        self._mark = (self.progress.timed_images, self.progress.timed_seconds)
        passed = self.progress.timed_seconds - seconds
        if passed <= 0:
            return {}
        speed = (self.progress.timed_images - images) / passed
        self.progress.tokens += tokens
        self.progress.places += places
        self.progress.token_seconds += passed if places else 0.0
        shares = {"images_per_second": speed, "data_wait_share": self.progress.data_wait_share}
        return shares | token_speed(tokens, places, passed)

    def interval_saves(self) -> dict[str, float]:
        """Return the seconds that copying the state, and waiting for the write before, took of the loop's time since
        the last call; empty if no checkpoint was made."""
        saves, copying, stalling = self._saves
        self._saves = now = (self.progress.saves, self.progress.copy_seconds, self.progress.stall_seconds)
        if now[0] == saves:
            return {}
        return {"save_copy_seconds": now[1] - copying, "save_stall_seconds": now[2] - stalling}


class LossWindow:
    """Sums of loss and weight since the last logged row, kept on the device so that no step waits for them."""

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    def add(self, loss: Tensor, weight: Tensor, is_bad: Tensor) -> None:
        """Count one step, unless it was bad."""
        self.sums += torch.where(is_bad, torch.zeros_like(self.sums), torch.stack([loss, weight]))

    def mean(self) -> float:
        """The mean since the last call; reads the device."""
        loss, weight = self.sums.tolist()
        self.sums.zero_()
        return loss / weight if weight else 0.0
