"""A metric of the user's own: FILE.py:CLASS, a torchmetrics class or one that is used alike."""

import inspect
import re
import warnings
from collections.abc import Collection
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ddp_ft.errors import UserError
from ddp_ft.plugins import is_reference, load_object

KEY = "eval.extra"
EXPECTED = "Expected a class with update(predictions, targets) and compute(), such as a torchmetrics.Metric."
# By these names torchmetrics' classes ask for the number of outputs.
_COUNTS = ("num_classes", "num_labels")


class UserMetric:
    """Its class is made anew for each evaluation and sees the whole set at once, on rank 0 alone.

    The file is read when it is needed, so that a model can predict where the file is not.
    """

    def __init__(self, reference: str, outputs: int) -> None:
        if not is_reference(reference):
            raise UserError(f"{KEY} = '{reference}' does not point at code.", "Expected FILE.py:CLASS.")
        self.reference = reference
        self.outputs = outputs
        class_name = reference.rpartition(":")[2]
        self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()

    def compute(self, predictions: Tensor, targets: Tensor) -> float:
        """Its value; UserError if it fails or gives no single number."""
        metric = self._make()
        try:
            metric.update(predictions, targets)
            value = metric.compute()
        except Exception as error:
            shapes = f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)}"
            raise UserError(f"{KEY}: {self.reference} failed on {shapes}: {_one_line(error)}", EXPECTED) from error
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"kind {type(value).__name__}"
            raise UserError(
                f"{KEY}: {self.reference}.compute() gave a value of {shape}, not a number.",
                "For torchmetrics, an average such as average='macro' makes it one.",
            ) from None

    def higher_is_better(self) -> bool:
        """As its attribute of that name says; UserError if it says nothing."""
        answer = getattr(self._class, "higher_is_better", None)
        if answer is None:
            answer = getattr(self._make(), "higher_is_better", None)
        if not isinstance(answer, bool):
            raise UserError(
                f"eval.metric = '{self.name}': {self.reference} does not say whether more is better.",
                "Give the class an attribute: higher_is_better = True (or False).",
            )
        return answer

    def check(self, taken: Collection[str], predictions: Tensor, targets: Tensor) -> None:
        """Try it on a few samples, before hours are spent; UserError also for a name that is `taken`."""
        if self.name in taken:
            raise UserError(f"{KEY}: the metric {self.name} is computed anyway.", "Give the class another name.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random answers may be odd
            self.compute(predictions, targets)

    @cached_property
    def _class(self) -> Any:
        return load_object(self.reference)

    def _make(self) -> Any:
        factory = self._class
        if not callable(factory):
            raise UserError(f"{KEY}: {self.reference} is a {type(factory).__name__}.", EXPECTED)
        try:
            parameters = inspect.signature(factory).parameters
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it keeps all predictions, at each evaluation
                metric = factory(**{name: self.outputs for name in _COUNTS if name in parameters})
        except Exception as error:
            raise UserError(
                f"{KEY}: {self.reference} could not be made: {_one_line(error)}",
                "It is called with num_classes or num_labels if it has such a parameter, else without arguments.",
            ) from error
        if not (callable(getattr(metric, "update", None)) and callable(getattr(metric, "compute", None))):
            raise UserError(f"{KEY}: {self.reference} makes a {type(metric).__name__}.", EXPECTED)
        _keep_local(metric)
        return metric


def _keep_local(metric: Any) -> None:
    """Without torchmetrics' own synchronisation: the other ranks compute nothing and would never join in."""
    from torchmetrics import Metric

    for part in metric.modules() if isinstance(metric, nn.Module) else ():
        if isinstance(part, Metric):
            part.sync_on_compute = part._to_sync = False


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
