"""Numbers estimated from an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_ft.config.schema import RunConfig
from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import Batch, TaskWords
from ddp_ft.errors import UserError
from ddp_ft.tasks.base import SupervisedTask
from ddp_ft.tasks.class_weights import CLASS_KEY, POSITIVE_KEY
from ddp_ft.tasks.losses import LossChoice, regression_losses
from ddp_ft.tasks.metric_table import directions_of
from ddp_ft.tasks.scored.base import Floats
from ddp_ft.tasks.scored.numbers import ScoredNumbers
from ddp_ft.texts import readable

VALUES = "values"


class Regression(SupervisedTask):
    """One number for each of `names`; batches carry "target" (float32, B x names).

    The network's outputs are standardised: output * `std` + `mean` (float64, names each) is in the target's own units.
    So is the loss, in training and evaluation; predictions and all other metrics are in the target's own units.
    """

    name = "regression"
    kinds = TASKS[name].kinds
    words = TaskWords(names="numbers", verb="predicts", hub_type="image-regression")
    losses = ("mse", "l1", "huber")
    # As many as a float32 has.
    digits = ".9g"
    primary_metric = TASKS[name].metric

    def __init__(self, names: tuple[str, ...], loss: LossChoice | None = None, extra: str | None = None) -> None:
        super().__init__(names, loss, extra)
        # Double: a deviation may be small beside its mean, as with years or temperatures in kelvin.
        self.mean = torch.zeros(self.outputs, dtype=torch.float64)
        self.std = torch.ones(self.outputs, dtype=torch.float64)

    @classmethod
    def from_data(cls, config: RunConfig, names: tuple[str, ...], targets: NDArray[Any]) -> "Regression":
        """Return the task for training on targets that are float32 (N x names).

        UserError for targets that are missing, infinite or all the same, and for settings that do not fit.
        """
        for key in (CLASS_KEY, POSITIVE_KEY):
            if getattr(config.loss, key.partition(".")[2]) is not None:
                hint = "data.weight sets one for each sample."
                raise UserError(f"{key} is for classes; the task is {cls.name}.", hint)
        values = targets.astype(np.float64).reshape(len(targets), len(names))
        for column, name in enumerate(names):
            _check_column(name, values[:, column])
        task = cls.configured(config, names)
        task.mean, task.std = torch.from_numpy(values.mean(0)), torch.from_numpy(values.std(0))
        return task

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Regression":
        """As in `SupervisedTask`, with mean and deviation."""
        task = super().from_settings(settings)
        task.mean, task.std = (torch.tensor(settings[name], dtype=torch.float64) for name in ("mean", "std"))
        return task

    def targets(self, batch: Batch) -> Tensor:
        """Standardised, float32, B x names."""
        target = batch["target"]
        self.mean, self.std = self.mean.to(target.device), self.std.to(target.device)
        return ((target.double() - self.mean) / self.std).float()

    def train_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over the numbers of an image, of standardised outputs and targets, B."""
        return regression_losses(self.choice, outputs, target)

    def plain_losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The same in double precision."""
        return regression_losses(self.choice, outputs, target.double())

    def other_metrics(self, predictions: Batch, target: Tensor) -> dict[str, float]:
        """In the target's units; for several numbers the mean of their metrics, and each one's mean error.

        r2 is 0 for a number that is the same in the whole set, where it is not defined.
        """
        from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

        columns = list(zip(predictions[VALUES].T, self._in_units(target).T, strict=True))
        errors = [float(mean_absolute_error(*each)) for each in columns]
        roots = [float(mean_squared_error(*each, squared=False)) for each in columns]
        explained = [_r2(*each) for each in columns]
        means = {name: float(np.mean(each)) for name, each in (("mae", errors), ("rmse", roots), ("r2", explained))}
        return {**means, **dict(zip(self._own_errors(), errors, strict=False))}

    def _own_errors(self) -> list[str]:
        return [f"mae/{name}" for name in self.names] if self.outputs > 1 else []

    def _in_units(self, standardised: Tensor) -> Tensor:
        return standardised.double() * self.std.to(standardised.device) + self.mean.to(standardised.device)

    def directions(self) -> dict[str, bool]:
        """Less is better, but for r2."""
        return directions_of("loss", "mae", "rmse", "r2", *self._own_errors())

    def trial_targets(self, samples: int, generator: torch.Generator) -> Tensor:
        """Drawn, of mean 0 and deviation 1."""
        return torch.randn(samples, self.outputs, generator=generator)

    def metric_inputs(self, predictions: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """In the target's units, float64, N x names; N for a single number, as torchmetrics takes it."""
        given, wanted = predictions[VALUES], self._in_units(target)
        return (given[:, 0], wanted[:, 0]) if self.outputs == 1 else (given, wanted)

    def predictions(self, outputs: Tensor, batch: Batch) -> Batch:
        """ "values": numbers in the target's units, float64, B x names."""
        return {VALUES: self._in_units(outputs)}

    def as_outputs(self, predictions: Batch) -> Tensor:
        """Standardised, float64."""
        values = predictions[VALUES]
        return (values - self.mean.to(values.device)) / self.std.to(values.device)

    def estimates(self, predictions: Batch) -> Tensor:
        """The values."""
        return predictions[VALUES]

    def make_scored_set(self, estimates: Floats, target: NDArray[Any]) -> ScoredNumbers:
        """The set of the numbers."""
        return ScoredNumbers(self.names, estimates, np.asarray(target, dtype=np.float64))

    def combine(self, predictions: Sequence[Batch]) -> Batch:
        """Their mean in the target's units, because each model standardises by its own training set."""
        return {VALUES: torch.stack([each[VALUES] for each in predictions]).mean(0)}

    def columns(self) -> dict[str, type]:
        """The numbers' names."""
        return dict.fromkeys(self.names, float)

    def answer(self, estimate: Sequence[float]) -> dict[str, Any]:
        """The numbers by name."""
        return {"values": dict(zip(self.names, estimate, strict=True))}

    def target_words(self, batch: Batch, place: int) -> list[str]:
        """The numbers."""
        return [readable(value) for value in batch["target"][place].reshape(-1).tolist()]

    def initial_bias(self) -> Tensor | None:
        """0: the training set's mean."""
        return torch.zeros(self.outputs)

    def settings(self) -> dict[str, Any]:
        """Names, loss, the user's metric, mean and deviation."""
        return {**super().settings(), "mean": self.mean.tolist(), "std": self.std.tolist()}


def _check_column(name: str, values: NDArray[np.float64]) -> None:
    count = f"{len(values)} training images"
    damaged = np.flatnonzero(~np.isfinite(values))
    if len(damaged):
        first = f"(first: number {damaged[0]}, {values[damaged[0]]})"
        message = f"The target '{name}' is no finite number for {len(damaged)} of {count} {first}."
        raise UserError(message, "Leave those rows out of the table, or fill the gaps.")
    if values.min() == values.max():
        message = f"The target '{name}' is {values[0]:g} for all {count}: nothing can be learned."
        raise UserError(message, "Choose other columns by data.target.")


def _r2(given: Tensor, wanted: Tensor) -> float:
    from torchmetrics.functional.regression import r2_score

    return float(r2_score(given, wanted)) if bool((wanted != wanted[0]).any()) else 0.0
