"""A network as two parts: what computes features, and the head on top of them.

`head_path` is that of `BuiltModel`: head_module(...)(features(...)) is the network's own output, bit for bit.
"""

from typing import Any

from torch import Tensor, nn

from ddp_ft.contracts import Batch, BuiltModel, Call

# The largest size of a data set's features that are held in memory without being asked for.
MOST_FEATURE_BYTES = 2**30


class _Reached(BaseException):
    """Carries the head's input out of the forward pass; no `except Exception` of a network stops it."""


def _stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


def features(module: nn.Module, head_path: str, call: Call, batch: Batch) -> Tensor:
    """Return the head's input for a prepared batch, in the network's current mode.

    B x features, or B x channels x 1 x 1 if the head is a convolution; of autocast's dtype. The forward pass ends
    there, so nothing of the head runs, not even its batch norm. A library's dropout right before the head's module is
    part of the features: a head trained on features of evaluation mode learns without it. All dropout of an mlp, and
    the dropout that ddp_ft adds if the library has none, belong to the head.
    """
    handle = module.get_submodule(head_path).register_forward_pre_hook(_stop, prepend=True)
    try:
        call(module, batch)
    except _Reached as reached:
        found: Tensor = reached.args[0]
        return found
    finally:
        handle.remove()
    raise AssertionError(f"the network did not call {head_path}")  # `find_head` has seen it do so


def call_with_features(head: nn.Module, batch: Batch) -> Any:
    """Call a head without its network."""
    return head(batch["features"])


def head_module(module: nn.Module, head_path: str) -> nn.Module:
    """Return the head as a module of its own, from features to B x outputs. It shares the network's parameters."""
    return nn.Sequential(module.get_submodule(head_path), nn.Flatten(1))  # a convolution returns B x outputs x 1 x 1


def feature_width(built: BuiltModel) -> int:
    """Return the number of values per sample that go into the head."""
    if "in_features" in built.spec.get("head", {}):
        return int(built.spec["head"]["in_features"])
    head = built.module.get_submodule(built.head_path or "")
    weights = [p for p in head.parameters() if p.ndim > 1]
    return weights[0].shape[1] if weights else 0
