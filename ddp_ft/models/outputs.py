"""The outputs of a network, B x outputs, in what its forward pass returns: these alone, or a tuple, a mapping or an
object that has them, perhaps in training mode only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Batch, Call
from ddp_ft.errors import UserError

# What a network calls its outputs: most do "logits", and torchvision's with an auxiliary head "out".
_NAMES = ("logits", "out")
_EXPECTED = (
    "Expected a tensor of images x {outputs}; or a mapping, named tuple or object that has it as `logits`, or in which "
    "nothing else has that shape."
)
# Keys, fields, attributes or places, from what was returned to a tensor in it.
_Path = tuple[Any, ...]


class OutputsCall:
    """A library's call whose result is float B x `outputs`, wherever the network has it.

    Where that is, the first call in each mode finds out; a later one looks there only, so nothing depends on a batch
    whose size is that of something else. UserError if it is nowhere, or may be several things.
    """

    def __init__(self, call: Call, outputs: int) -> None:
        self.call = call
        self.outputs = outputs
        self._paths: dict[bool, _Path] = {}

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the outputs for a prepared batch."""
        found, samples = self.call(module, batch), next(iter(batch.values())).shape[0]
        if _is_plain(found) and found.shape == (samples, self.outputs):
            return found
        if module.training not in self._paths:
            self._paths[module.training] = self._find(found, samples)
        outputs = _follow(found, self._paths[module.training])
        if not _has_rows(outputs, samples, self.outputs):
            raise self._error(found, samples, [])
        rows: Tensor = outputs if outputs.ndim == 2 else outputs.reshape(samples, self.outputs)
        return rows

    def _find(self, found: Any, samples: int) -> _Path:
        tensors = dict(_tensors(found))
        named = next(((name,) for name in _NAMES if (name,) in tensors), None)
        if named is not None:
            return named
        fitting = [path for path, each in tensors.items() if _has_rows(each, samples, self.outputs)]
        fitting = [path for path in fitting if tensors[path].shape == (samples, self.outputs)] or fitting
        if len(fitting) != 1:
            raise self._error(found, samples, fitting)
        return fitting[0]

    def _error(self, found: Any, samples: int, fitting: Sequence[_Path]) -> UserError:
        shapes = [f"{_label(path)}{_described(each)}" for path, each in _tensors(found)]
        what = f"a {type(found).__name__} with " if not isinstance(found, Tensor) else "a tensor of "
        returned = f"{what}{', '.join(shapes[:6]) or 'no tensors'}"
        why = f"{len(fitting)} tensors are" if fitting else "no float tensor is"
        return UserError(
            f"The forward pass returned {returned}: {why} {samples} x {self.outputs} (images x outputs).",
            _EXPECTED.format(outputs=self.outputs),
        )


def _is_plain(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor of which a loss can be computed: neither whole or complex numbers nor a sparse one."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def _described(tensor: Tensor) -> str:
    sides = " x ".join(map(str, tensor.shape)) or "a number"
    kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
    return sides if _is_plain(tensor) else f"{sides} ({str(kind).removeprefix('torch.')})"


def _has_rows(tensor: Any, samples: int, outputs: int) -> bool:
    """Whether it is `samples` x `outputs`, but for dimensions of size 1."""
    if not _is_plain(tensor):
        return False
    return [side for side in tensor.shape if side != 1] == [side for side in (samples, outputs) if side != 1]


def _tensors(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Tensor]]:
    """Yield all tensors of a result, with the way to each."""
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) < 3:  # deeper ones are no outputs, and objects may refer to each other in circles
        for key, inner in _children(value):
            yield from _tensors(inner, (*path, key))


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value):  # which has no __dict__ if it has slots
        return [(each.name, getattr(value, each.name, None)) for each in fields(value)]
    return list(vars(value).items()) if hasattr(value, "__dict__") and not isinstance(value, nn.Module) else []


def _follow(value: Any, path: _Path) -> Any:
    for key in path:
        value = dict(_children(value)).get(key)
    return value


def _label(path: _Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".") + (
        ": " if path else ""
    )


class OutputsAlone(nn.Module):
    """A network as a module of its own that returns only its outputs, for tracing."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, images: Tensor) -> Any:
        """Float B x C x H x W to float B x outputs."""
        return self.call(self.module, {"image": images})
