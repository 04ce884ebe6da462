"""Pure functions of the step: how large the learning rate is, and whether something is due."""

import math
from dataclasses import dataclass, replace

from ddp_ft.config.forms import check_milestones
from ddp_ft.config.schema import SCHEDULES

# Where onecycle begins, as a multiple of the peak (div_factor of torch's OneCycleLR).
ONECYCLE_START = 1 / 25
# 0.3 / 0.1 is 2.9999999999999996: an epoch counts as reached this much before its end.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Schedule:
    """The factor of the base rate, over the optimizer steps of a run.

    A warm-up of `warmup_steps` steps ends at 1: linear, but for onecycle, which rises from 1/25 along half a cosine
    (torch's OneCycleLR; its momentum does not change). Then it depends on `name`:

    - constant: 1; so is plateau, whose falls are a `Plateau`;
    - cosine (arXiv 1608.03983, without restarts), onecycle, linear, polynomial (with exponent `power`): down to
      `final_factor`, which the step after the last one would have;
    - step, multistep: times `gamma` every `every_epochs` epochs, or at each of `milestones`, but not below
      `final_factor`. Epochs count from the first step; a fall within the warm-up takes effect at its end.

    Raises UserError for multistep without milestones, or with milestones that do not rise.
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    final_factor: float = 0.0
    steps_per_epoch: int = 1
    every_epochs: float = 1.0
    milestones: tuple[float, ...] | None = None
    gamma: float = 0.1
    power: float = 2.0

    def __post_init__(self) -> None:
        assert self.name in SCHEDULES, self.name
        if self.name == "multistep":
            check_milestones(self.milestones)

    def factor(self, step: int) -> float:
        """Return the factor of `step`, counted from 0."""
        if step < self.warmup_steps:
            if self.name == "onecycle":
                return _between(ONECYCLE_START, 1.0, _half_cosine(step / self.warmup_steps))
            return (step + 1) / (self.warmup_steps + 1)
        if self.name in ("constant", "plateau"):
            return 1.0
        if self.name in ("step", "multistep"):
            return max(self.final_factor, self.gamma ** self._falls(step))
        return _between(1.0, self.final_factor, self._descent(step))

    def _falls(self, step: int) -> int:
        epochs = step / self.steps_per_epoch
        if self.name == "multistep":
            return sum(milestone <= epochs + ROUNDING for milestone in self.milestones or ())
        return math.floor(epochs / self.every_epochs + ROUNDING)

    def _descent(self, step: int) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.name == "linear":
            return progress
        return float(1 - (1 - progress) ** self.power) if self.name == "polynomial" else _half_cosine(progress)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * progress))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 - share)


@dataclass(frozen=True)
class Plateau:
    """The state of the plateau schedule: the factor so far, the best value, and how many were no better since."""

    factor: float = 1.0
    best: float | None = None
    stale: int = 0

    def after(
        self, value: float, higher_is_better: bool, patience: int, gamma: float, final_factor: float = 0.0
    ) -> "Plateau":
        """Return the state after an evaluation with this `value`.

        As torch's ReduceLROnPlateau with a threshold of 0: after `patience` values that are no better the next one
        multiplies the factor by `gamma`, but not below `final_factor`. NaN is never better.
        """
        if self._is_better(value, higher_is_better):
            return Plateau(self.factor, value, 0)
        if self.stale < patience:
            return replace(self, stale=self.stale + 1)
        return Plateau(max(final_factor, self.factor * gamma), self.best, 0)

    def _is_better(self, value: float, higher_is_better: bool) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value > self.best if higher_is_better else value < self.best


@dataclass(frozen=True)
class Cadence:
    """After which steps of a phase rows, evaluations and checkpoints are due. Each every so many steps (0: never), rows
    and evaluations also at the `last` one. Checkpoints also every `epoch` steps (0: none), and at the last."""

    last: int
    row_every: int
    evaluation_every: int
    checkpoint_every: int
    epoch: int = 0

    def row(self, step: int) -> bool:
        """Return whether a row of metrics is due after `step` steps."""
        return is_due(step, self.row_every, self.last)

    def evaluation(self, step: int) -> bool:
        """Return whether an evaluation is due after `step` steps."""
        return is_due(step, self.evaluation_every, self.last)

    def checkpoint(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        ends_epoch = self.epoch > 0 and is_due(step, self.epoch, self.last)
        return ends_epoch or (self.checkpoint_every > 0 and step % self.checkpoint_every == 0)

    def reads_weights(self, step: int) -> bool:
        """Return whether the step's result must be known before the next: it is logged, saved or evaluated then."""
        return self.row(step) or self.checkpoint(step) or self.evaluation(step)

    def next_checkpoint(self, step: int) -> int:
        """Return the first step after this one at which a checkpoint is due."""
        periods = [every for every in (self.epoch, self.checkpoint_every) if every > 0]
        return min([self.last, *((step // every + 1) * every for every in periods)])


# A curve of fewer points says little of a short run.
_FEWEST_ROWS, _USUAL_ROW_EVERY = 30, 10


def row_every(total_steps: int) -> int:
    """Return the steps between rows of metrics in a phase of so many steps, if none are asked for."""
    return max(1, min(_USUAL_ROW_EVERY, total_steps // _FEWEST_ROWS))


def is_due(step: int, every: int, last: int) -> bool:
    """Return whether something is due after `step` steps: every `every` steps (0: never), and at the `last` one."""
    return step == last or (every > 0 and step > 0 and step % every == 0)
