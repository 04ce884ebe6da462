"""What can be told of an architecture only by trying it: its head, and whether it takes an input.

Tried on the meta device, where tensors have shapes alone, so that even a large model costs little.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ddp_ft.contracts import Call, Processor
from ddp_ft.errors import one_line


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built meanwhile keep the shapes of their parameters alone; all other tensors are real.

    For what cannot be built under `torch.device("meta")`: torchvision's regnets compute widths with tensors.
    """
    hook: Any = _shape_alone  # torch declares that hooks return nothing, and uses what they return
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _shape_alone(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    # None means: as it is. A parameter that is on the meta device already may be shared and must stay one.
    if parameter is None or parameter.is_meta or is_lazy(parameter):
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


# What initialises a parameter. In place none of these changes a shape.
_INITIALISING = frozenset(
    ("uniform_", "normal_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_", "zero_", "fill_", "copy_")
)


class WithoutValues(TorchFunctionMode):
    """Leaves tensors that have shapes alone as they are: to initialise them takes half the time of building."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and getattr(func, "__name__", "") in _INITIALISING and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def build_shapes(create: Callable[[], nn.Module]) -> nn.Module:
    """The module on the meta device, or for real if it cannot be built there; draws no random numbers."""
    # A factory that loads weights of its own is warned that doing so on the meta device has no effect.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for cheap in (torch.device("meta"), parameters_on_meta()):
            try:
                with cheap, WithoutValues():
                    return create().to("meta")
            except Exception:
                continue
        return create()


def head_names(module: nn.Module, other: nn.Module) -> frozenset[str]:
    """The parameters whose shape differs between two builds of one architecture with unequal outputs."""
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return frozenset(name for name, each in module.named_parameters() if shapes.get(name) != each.shape)


@dataclass(frozen=True)
class Trial:
    """How a model is tried: called with two samples of noise, as its processor prepares them."""

    processor: Processor
    call: Call

    def __call__(self, module: nn.Module, samples: int = 2) -> Any:
        """What the module gives for them, on its device."""
        to_device = self.processor.on_device(next(module.parameters()).device, channels_last=False)
        return self.call(module, to_device(self.processor.example(samples)))


def why_not(module: nn.Module, shapes: nn.Module, trial: Trial) -> str:
    """Why the model cannot take such input, in one line; empty if it can."""
    # Some operations know no meta device, so what fails there is asked once more for real.
    return _why_not(shapes, trial) and _why_not(module, trial)


def _why_not(module: nn.Module, trial: Trial) -> str:
    try:
        _run(module, trial, training=False)
    except Exception as error:
        return one_line(error)
    return ""


def _run(module: nn.Module, trial: Trial, training: bool) -> Any:
    """What comes of a trial; the module's mode is afterwards as before."""
    was_training = module.training
    module.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trial(module)
    finally:
        module.train(was_training)


@dataclass(frozen=True)
class HeadSite:
    """Where a network ends: the name of the head's module, how many features of a sample go into it (`in_features`),
    and how many dimensions its output has (more than 2 where a convolution is the head)."""

    path: str
    in_features: int
    dimensions: int


def find_head(module: nn.Module, shapes: nn.Module, head: Collection[str], trial: Trial) -> HeadSite | None:
    """The smallest module with all parameters of the head, if its output is what the network gives, else None.

    It must be called once, with one tensor, and nothing may be computed with its output; to give it another shape,
    such as B x outputs x 1 x 1 as B x outputs, is allowed. Told from the identity of the tensors and not from their
    values, so that what happens to be equal at the start (a factor of 1) is not mistaken for equality.
    """
    path = _common_path(head)
    for tried in (shapes, module):  # some operations know no meta device
        try:
            return _watch_head(tried, path, trial) if path else None
        except Exception:
            continue
    return None


def _common_path(names: Collection[str]) -> str:
    """The name of the smallest module that holds all the parameters; empty if that is the network itself."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _watch_head(module: nn.Module, path: str, trial: Trial) -> HeadSite | None:
    calls: list[tuple[Any, ...]] = []

    def note(part: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        is_plain = len(args) == 1 and not named and isinstance(output, Tensor)
        calls.append((args[0], output, output._version) if is_plain else ())

    handle = module.get_submodule(path).register_forward_hook(note, with_kwargs=True)
    try:
        outputs = _run(module, trial, training=False)
    finally:
        handle.remove()
    if len(calls) != 1 or not calls[0] or not isinstance(outputs, Tensor):
        return None
    features, logits, version = calls[0]
    has_shape = outputs.ndim == 2 and outputs.shape == logits.flatten(1).shape
    if not (has_shape and _is_same(outputs, logits) and outputs._version == version):
        return None
    return HeadSite(path, features.flatten(1).shape[1], logits.ndim)


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether both are one tensor, or views of one."""
    return _root(tensor) is _root(other)


def _root(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


@dataclass(frozen=True)
class Dropout:
    """A dropout that stands right before the head: its rate, and the name of its nn.Dropout if it is a module."""

    rate: float
    module: str = ""


def dropouts_before(module: nn.Module, head: Collection[str], trial: Trial) -> list[Dropout]:
    """The dropouts between the last layer and the head, in the order in which they work.

    Tells what the network does in training mode, so batch norm's statistics change. Raises what the forward pass
    raises.
    """
    found: list[list[Dropout]] = []
    with _Dropouts() as applied:
        handles = [
            part.register_forward_hook(_name_of(name, applied))
            for name, part in module.named_modules()
            if isinstance(part, nn.Dropout)
        ]

        def note(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.append([each for tensor, each in applied.seen if _is_same(tensor, inputs[0])])

        # The smallest module of all, and those within it: some are mere lists, and not called.
        for name in {_common_path(head), *(each.rpartition(".")[0] for each in head)} - {""}:
            handles.append(module.get_submodule(name).register_forward_pre_hook(note))
        try:
            _run(module, trial, training=True)
        finally:
            for handle in handles:
                handle.remove()
    return found[0] if found else []


class _Dropouts(TorchFunctionMode):
    """Notes each call of dropout in training mode: its output, kept so that its identity stays its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Dropout]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.dropout and kwargs["training"]:
            self.seen.append((output, Dropout(kwargs["p"])))
        return output


def _name_of(name: str, applied: _Dropouts) -> Callable[..., None]:
    def note(part: nn.Module, inputs: Any, output: Tensor) -> None:
        if applied.seen and applied.seen[-1][0] is output:
            applied.seen[-1] = (output, Dropout(applied.seen[-1][1].rate, name))

    return note
