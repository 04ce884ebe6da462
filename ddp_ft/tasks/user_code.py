"""A loss or a metric of the user's own: FILE.py:CLASS."""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddp_ft.errors import UserError
from ddp_ft.plugins import described, instance_of, is_reference, load_object, running

KEY = "eval.extra"
EXPECTED = "Expected a class with update(predictions, targets) and compute(), such as a torchmetrics.Metric."
# The names by which torchmetrics' classes take the number of outputs.
_COUNTS = ("num_classes", "num_labels")

CONTRACT = (
    "Expected loss(outputs, targets) to return one value for each sample, a float tensor of shape (B,), as with "
    "reduction='none'. Means over the shares of several processes do not make the mean of the batch: the toolkit sums "
    "the samples itself, and so is exact on any number of processes."
)


class UserLoss:
    """The loss FILE.py:CLASS: a class or function without arguments that returns the loss, or the loss itself.

    The file is read at the first call, so that a model can predict on a machine without it.
    """

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses of single samples (B), on the device of the outputs."""
        loss = self._loss
        if isinstance(loss, nn.Module):
            loss = loss.to(outputs.device)  # moves its buffers, once
        return loss(outputs, targets)

    @cached_property
    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        loss = instance_of(self.reference)
        if not callable(loss):
            raise UserError(f"{self.reference} is a {type(loss).__name__}, which cannot be called.", CONTRACT)
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            hint = "Keep its constants as buffers (register_buffer), or set requires_grad to False."
            raise UserError(f"{self.reference} has parameters of its own, which no optimizer would train.", hint)
        return cast(Callable[[Tensor, Tensor], Tensor], loss)

    def check(self, outputs: Tensor, targets: Tensor) -> str:
        """Call it on some samples, and return a line on it. UserError unless it returns one finite value for each, from
        that sample alone, with a finite gradient."""
        outputs = outputs.requires_grad_()
        losses = self._try(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(outputs),):
            given = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else repr(type(losses))
            raise UserError(f"{self.reference} returned {given} for {len(outputs)} samples.", CONTRACT)
        if not losses.requires_grad:
            raise UserError(f"{self.reference} returned values without a gradient: nothing could be learned.", CONTRACT)
        if not bool(losses.isfinite().all()):
            values = losses.tolist()[:4]
            raise UserError(f"{self.reference} returned {values} for ordinary outputs.", "Expected finite values.")
        alone = self._try(outputs[:1], targets[:1])
        if alone.shape != (1,) or not torch.allclose(alone, losses[:1], rtol=1e-3, atol=1e-4):
            hint = f"It must compute each sample by itself, and draw nothing at random. {CONTRACT}"
            raise UserError(f"{self.reference} returns another loss for a sample alone than among others.", hint)
        self._check_gradient(outputs, losses)
        given = f"outputs {described(outputs)} and targets {described(targets)}"
        return f"{self.reference}: called with {given}, returned {len(losses)} losses; their gradient is finite."

    def _check_gradient(self, outputs: Tensor, losses: Tensor) -> None:
        with running(f"The gradient of {self.reference} cannot be computed"):
            (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        if not bool(gradient.isfinite().all()):
            hint = "A root or a logarithm at 0 has such a gradient, also where torch.where hides its value."
            raise UserError(f"{self.reference} has a gradient that is not finite for ordinary outputs.", hint)

    def _try(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = self._loss
        shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} ({targets.dtype})"
        with running(f"{self.reference} failed on {shapes}", CONTRACT):
            return loss(outputs, targets)


class UserMetric:
    """A metric whose class is instantiated for each evaluation and gets the whole set at once, on rank 0 alone.

    The file is read when it is needed, so that a model can predict on a machine without it.
    """

    def __init__(self, reference: str, outputs: int) -> None:
        if not is_reference(reference):
            raise UserError(f"{KEY} = '{reference}' does not point at code.", "Expected FILE.py:CLASS.")
        self.reference = reference
        self.outputs = outputs
        class_name = reference.rpartition(":")[2]
        self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()

    def compute(self, predictions: Tensor, targets: Tensor) -> float:
        """Its value; UserError if it fails or returns no single number."""
        metric = self._make()
        shapes = f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)}"
        with running(f"{KEY}: {self.reference} failed on {shapes}", EXPECTED):
            metric.update(predictions, targets)
            value = metric.compute()
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            hint = "For torchmetrics, an average such as average='macro' makes it one."
            raise UserError(f"{KEY}: {self.reference}.compute() returned {shape}, not a number.", hint) from None

    def higher_is_better(self) -> bool:
        """Its attribute of that name; UserError if it has none."""
        answer = getattr(self._class, "higher_is_better", None)
        if answer is None:
            answer = getattr(self._make(), "higher_is_better", None)
        if not isinstance(answer, bool):
            hint = "Give the class an attribute: higher_is_better = True (or False)."
            raise UserError(f"eval.metric = '{self.name}': {self.reference} has no higher_is_better.", hint)
        return answer

    def check(self, taken: Collection[str], predictions: Tensor, targets: Tensor) -> str:
        """Try it on a few samples, before the training, and return a line on it. UserError also for a name that is
        `taken`."""
        if self.name in taken:
            raise UserError(f"{KEY}: the metric {self.name} is computed anyway.", "Give the class another name.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random answers may be odd
            value = self.compute(predictions, targets)
        given = f"predictions {described(predictions)} and targets {described(targets)}"
        return f"{self.reference}: the metric {self.name}, called with {given}, returned {value:.4g}."

    @cached_property
    def _class(self) -> Any:
        return load_object(self.reference)

    def _make(self) -> Any:
        factory = self._class
        if not callable(factory):
            raise UserError(f"{KEY}: {self.reference} is a {type(factory).__name__}.", EXPECTED)
        hint = "It is called with num_classes or num_labels if it has such a parameter, else without arguments."
        with running(f"{KEY}: {self.reference} could not be made", hint), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it keeps all predictions, at each evaluation
            parameters = inspect.signature(factory).parameters
            metric = factory(**{name: self.outputs for name in _COUNTS if name in parameters})
        if not (callable(getattr(metric, "update", None)) and callable(getattr(metric, "compute", None))):
            raise UserError(f"{KEY}: {self.reference} makes a {type(metric).__name__}.", EXPECTED)
        _keep_local(metric)
        return metric


def _keep_local(metric: Any) -> None:
    """Turn torchmetrics' own synchronisation off: the other ranks compute nothing and would never join it."""
    if "torchmetrics" not in sys.modules:  # it takes two seconds to import, and the metric has not needed it
        return
    from torchmetrics import Metric

    for part in metric.modules() if isinstance(metric, nn.Module) else ():
        if isinstance(part, Metric):
            part.sync_on_compute = part._to_sync = False
