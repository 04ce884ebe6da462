"""A network as two parts: what computes features, and the head that stands on them.

`head_path` is that of `BuiltModel`: head_module(...)(features(...)) is the network's own output, bit for bit.
"""

from typing import Any

from torch import Tensor, nn

from ddp_ft.contracts import Batch, BuiltModel, Call

# Above this size the features of a data set are no longer held in memory as a matter of course.
MOST_FEATURE_BYTES = 2**30


class _Reached(BaseException):
    """Carries the head's input out of the forward pass; no `except Exception` of a network stops it."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


def features(module: nn.Module, head_path: str, call: Call, batch: Batch) -> Tensor:
    """What goes into the head for a prepared batch, in the network's current mode.

    B x features, or B x channels x 1 x 1 where the head is a convolution; of the dtype that autocast gives. The
    forward pass ends there, so nothing of the head runs, not even its batch norm. Where a library's dropout stands
    right before the head's module, it is part of the features: a head that is trained on features which were
    computed in evaluation mode learns without that dropout. All dropout of an mlp, and the dropout that ddp_ft adds
    where the library has none, belong to the head.
    """
    handle = module.get_submodule(head_path).register_forward_pre_hook(_stop, prepend=True)
    try:
        call(module, batch)
    except _Reached as reached:
        return reached.features
    finally:
        handle.remove()
    raise AssertionError(f"the network did not call {head_path}")  # `find_head` has seen it do so


def call_with_features(head: nn.Module, batch: Batch) -> Any:
    """The call of a head that stands alone."""
    return head(batch["features"])


def head_module(module: nn.Module, head_path: str) -> nn.Module:
    """The head as a module of its own, from features to B x outputs. It shares its parameters with the network."""
    return nn.Sequential(module.get_submodule(head_path), nn.Flatten(1))  # a convolution gives B x outputs x 1 x 1


def feature_width(built: BuiltModel) -> int:
    """How many values the head is given for each sample."""
    if "in_features" in built.spec.get("head", {}):
        return int(built.spec["head"]["in_features"])
    head = built.module.get_submodule(built.head_path or "")
    weights = [p for p in head.parameters() if p.ndim > 1]
    return weights[0].shape[1] if weights else 0
