"""What can be found out about an architecture only by calling it: its head, the inputs it takes, what it costs.

It is called on the meta device, where tensors have only shapes, so that even a large model costs little.
"""

import copy
import io
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ddp_ft.contracts import Call, Processor
from ddp_ft.errors import UserError
from ddp_ft.plugins import explained

# What torch and models raise where sizes do not fit, and what the messages of the same types may be about instead.
_ERRORS_OF_SIZES = (RuntimeError, ValueError, AssertionError, IndexError, ArithmeticError)
_OTHER_TROUBLE = re.compile(r"(?i)dtype|should be the same|nvidia|cuda")


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built in the block keep only the shapes of their parameters; all other tensors are real.

    For models that cannot be built under `torch.device("meta")`: torchvision's regnets compute widths with tensors.
    """
    hook: Any = _shape_alone  # torch declares that hooks return nothing, and uses what they return
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _shape_alone(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    # None keeps the parameter. One that is already on the meta device may be shared, and must stay one.
    if parameter is None or parameter.is_meta or is_lazy(parameter):
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


# Operations that initialise a parameter in place; none changes its shape.
_INITIALISING = frozenset(
    ("uniform_", "normal_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_", "zero_", "fill_", "copy_")
)


class WithoutValues(TorchFunctionMode):
    """Skips the initialisation of tensors without values, which takes half the time of building."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and getattr(func, "__name__", "") in _INITIALISING and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def build_shapes(create: Callable[[], nn.Module]) -> nn.Module:
    """Return the module on the meta device, or a real one if it cannot be built there; draws no random numbers."""
    # A factory that loads weights of its own causes a warning that this has no effect on the meta device.
    # What a user's factory prints is shown once, when the real module is built.
    unseen = io.StringIO()
    with redirect_stderr(unseen), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
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
    """How a model is tried: called with a few samples of noise, as its processor prepares them."""

    processor: Processor
    call: Call

    def __call__(self, module: nn.Module, samples: int = 2) -> Any:
        """Return the module's outputs for them, on its device."""
        to_device = self.processor.on_device(next(module.parameters()).device, channels_last=False)
        return self.call(module, to_device(self.processor.example(samples)))


def why_not(trials: Sequence[tuple[nn.Module, Trial]]) -> str:
    """Return why the model cannot take such input, in one line; empty if it can. `trials` are of it on the meta device,
    and of the real one, since some operations have no meta device."""
    reason = ""
    for tried, trial in trials:
        try:
            _run(tried, trial, training=False)
            return ""
        except UserError:  # it takes the input, and returns what is none of its outputs
            return ""
        except Exception as error:
            reason = explained(error) if _may_be_of_sizes(error) else ""
    return reason


def _may_be_of_sizes(error: Exception) -> bool:
    """Whether another image size might help; not where a network lacks an attribute or has other numbers or devices."""
    return isinstance(error, _ERRORS_OF_SIZES) and not _OTHER_TROUBLE.search(str(error))


def _run(module: nn.Module, trial: Callable[[nn.Module], Any], training: bool) -> Any:
    """Return the outputs of a trial; the module's mode is restored."""
    was_training = module.training
    module.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trial(module)
    finally:
        module.train(was_training)


def on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of the module on the meta device, in the same mode and with the same parts frozen.

    ValueError for a module that cannot be copied so, as one of TorchScript, whose copy would have other parameters.
    """
    memo: dict[int, Any] = {id(each): each.to("meta") for each in module.buffers()}
    memo |= {id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in module.parameters()}
    copied = copy.deepcopy(module, memo)
    if not all(each.is_meta for each in copied.parameters()):
        raise ValueError("some parameters of the copy are on another device")
    return copied


def flops_per_sample(module: nn.Module, trial: Trial) -> float | None:
    """Return the floating-point operations of a forward pass of one sample; a multiplication and an addition are two.

    Convolutions, products of matrices and attention are counted, as torch's FlopCounterMode does. It runs a copy on
    the meta device: the module is not changed. None if the model does not run there.
    """
    try:
        shapes = on_meta(module)
        with FlopCounterMode(display=False) as counter:
            _run(shapes, partial(trial, samples=1), training=False)
    except Exception:  # an operation that has no meta device, or a network that looks at values
        return None
    return float(counter.get_total_flops())


@dataclass(frozen=True)
class HeadSite:
    """Where a network ends: the name of the head's module, how many features of a sample go into it (`in_features`),
    and how many dimensions its output has (more than 2 if the head is a convolution)."""

    path: str
    in_features: int
    dimensions: int


def find_head(trials: Sequence[tuple[nn.Module, Trial]], head: Collection[str]) -> HeadSite | None:
    """Return the smallest module with all parameters of the head if its output is the network's output, else None.

    It must be called once, with one tensor, and nothing may be computed with its output but another shape (B x outputs
    of B x outputs x 1 x 1). Tensors are compared by identity and not by value: a factor that starts at 1 would look
    like equality. `trials` are as in `why_not`.
    """
    path = _common_path(head)
    for tried, trial in trials:
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
    """A dropout right before the head: its rate, and the name of its nn.Dropout if it is a module."""

    rate: float
    module: str = ""


def dropouts_before(module: nn.Module, head: Collection[str], trial: Trial) -> list[Dropout]:
    """Return the dropouts between the last layer and the head, in the order of the forward pass.

    The network runs in training mode, so batch norm's statistics change. Raises what the forward pass raises.
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

        # The smallest module of all, and those inside it: some are only lists, which are not called.
        for name in {_common_path(head), *(each.rpartition(".")[0] for each in head)} - {""}:
            handles.append(module.get_submodule(name).register_forward_pre_hook(note))
        try:
            _run(module, trial, training=True)
        finally:
            for handle in handles:
                handle.remove()
    return found[0] if found else []


class _Dropouts(TorchFunctionMode):
    """Records each call of dropout in training mode with its output, which is kept so that no other gets its id."""

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
