"""A forward pass in training mode before anything is trained: what it does not use, how few samples it takes, and
whether it works at all."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.rng import generators_kept
from ddp_ft.errors import UserError, shortened
from ddp_ft.models.introspection import Trial, on_meta
from ddp_ft.models.libraries.registry import USER_FILES
from ddp_ft.plugins import explained

_TO_PROBABILITIES = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}
_CHANGES_OF_FORM = frozenset(
    ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "SqueezeBackward1", "SqueezeBackward0",
     "ToCopyBackward0", "CloneBackward0", "AliasBackward0", "SelectBackward0")
)  # fmt: skip


@dataclass(frozen=True)
class Rehearsal:
    """`unused` names the parameters that would learn but get no gradient. `least` is the fewest samples of a forward
    pass in training: 2 if a batch norm has one value for each channel of a sample, and so no variance of a single one.
    `ends_in` is "softmax" or "sigmoid" if the outputs are probabilities and no logits.
    """

    unused: frozenset[str] = frozenset()
    least: int = 1
    ends_in: str = ""


def rehearse_built(built: BuiltModel, config: RunConfig, device: torch.device) -> Rehearsal:
    """Rehearse a model, in its present mode, for training on that device."""
    # A network may be written for a GPU, or for autocast.
    may_differ = device.type == "cuda" or config.compute.precision not in ("auto", "fp32")
    is_own = built.spec["library"] == USER_FILES
    return rehearse(built.module, Trial(built.processor, built.call), config.model.name or "", is_own, may_differ)


def rehearse(module: nn.Module, trial: Trial, name: str, both_modes: bool, may_differ: bool) -> Rehearsal:
    """Return what a pass with noise shows of the module in its present mode, which it does not change.

    On the meta device if that can be; so it costs about as much as building the model. `both_modes`: evaluation mode is
    tried, too. `may_differ`: training will be on another device or in another precision, so a failure here means
    nothing. Raises UserError for a network that fails, from which nothing can learn, or whose outputs are not to be
    found; `name` is the model's.
    """
    try:
        return _rehearsed(on_meta(module), trial, both_modes)
    except UserError:
        raise
    except Exception:  # an operation without a meta device, a network that looks at values, or one that fails anyway
        pass
    try:
        with _untouched(module):
            return _rehearsed(module, trial, both_modes)
    except UserError:
        raise
    except torch.OutOfMemoryError:
        return Rehearsal()
    except Exception as error:
        if may_differ:
            return Rehearsal()
        raise UserError(
            f"{name} fails on noise, in {'training' if module.training else 'evaluation'} mode: {explained(error)}.",
            f"A model takes {_expected(trial)}, and returns B x outputs.{_other_numbers(module)}",
        ) from error


def _expected(trial: Trial) -> str:
    if trial.processor.kind != "image":
        return f"'{trial.processor.kind}', as its library calls it"
    sizes = [list(tensor.shape[1:]) for tensor in trial.processor.example(1).values()]
    channels = sizes[0][0] if len(sizes) == 1 and len(sizes[0]) == 3 else 3
    more = f" (data.channels = {channels})" if channels != 3 else ""
    return f"float images, B x {channels} x height x width{more}"


def _other_numbers(module: nn.Module) -> str:
    kinds = sorted({str(each.dtype).removeprefix("torch.") for each in module.parameters()} - {"float32"})
    return f" Its parameters are {shortened(kinds)}: keep them in float32; --precision does the rest." if kinds else ""


def _rehearsed(module: nn.Module, trial: Trial, both_modes: bool) -> Rehearsal:
    with generators_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outputs, least = trial(module, samples=1), 1
        except torch.OutOfMemoryError:
            raise
        except Exception:  # as batch norm does on a single value for each channel
            outputs, least = trial(module, samples=2), 2
        found = Rehearsal(_without_gradient(module, outputs), least, _last_operation(outputs))
        if both_modes:
            with torch.no_grad():
                trial(module.eval(), samples=2)
        return found


def _without_gradient(module: nn.Module, outputs: Any) -> frozenset[str]:
    """Return the names of the parameters that learn but have no part in the outputs."""
    learning = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if complex_ones := [name for name, parameter in learning.items() if parameter.is_complex()]:
        raise UserError(
            f"Parameters of complex numbers cannot be trained here: {shortened(complex_ones, 3)}.",
            "Keep real ones, of a last dimension of 2, and compute with torch.view_as_complex; or freeze them.",
        )
    tensors = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad]
    if not tensors:
        raise UserError(
            "The model's outputs do not depend on any parameter that learns.",
            "Does its forward pass run under torch.no_grad, or detach what it computes? See --freeze, too.",
        )
    reached = _reached(tensors)
    if all(id(parameter) in reached for parameter in learning.values()):
        return frozenset()
    # Only now, since it takes twice as long: the graph ends at a reentrant checkpoint, a backward pass does not.
    torch.autograd.backward([each.float().sum() for each in tensors])
    return frozenset(name for name, parameter in learning.items() if parameter.grad is None)


def _last_operation(outputs: Any) -> str:
    """Return which function of _TO_PROBABILITIES made the outputs, but for changes of their shape and precision."""
    node = outputs.grad_fn if isinstance(outputs, Tensor) else None
    while node is not None and node.name() in _CHANGES_OF_FORM:
        node = node.next_functions[0][0]
    return _TO_PROBABILITIES.get(node.name(), "") if node is not None else ""


def _reached(tensors: Collection[Tensor]) -> set[int]:
    """Return the ids of the leaves of the tensors' graph. UserError for an embedding whose gradient is sparse."""
    nodes, seen, found = [each.grad_fn for each in tensors], set[Any](), {id(each) for each in tensors}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "_saved_sparse", False):
            hint = "Make it with sparse=False: few optimizers take such gradients, and processes cannot sum them."
            raise UserError("The model has an embedding with sparse gradients (sparse=True), on which it learns.", hint)
        found.add(id(getattr(node, "variable", None)))
        nodes += [following for following, _ in node.next_functions]
    return found


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """After the block the module's buffers, attributes and gradients are as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    attributes = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for part, values, own_buffers in attributes:
            vars(part).clear()
            vars(part).update(values)
            for name, buffer in own_buffers.items():
                part._buffers[name] = buffer  # TorchScript's have no update
        for buffer, value in buffers:
            buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
