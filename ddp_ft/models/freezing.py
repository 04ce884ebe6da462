"""Which parameters are frozen: the language of `freeze.parts`, its schedule, and the mode of frozen modules.

A frozen module stays in evaluation mode, so its batch norm keeps its statistics and its dropout is off.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ddp_ft.errors import UserError, nearest
from ddp_ft.models.blocks import stages
from ddp_ft.texts import plural

_FORMS = "Expected none, backbone, stages:K, norm, type:CLASS or regex:PATTERN; several joined by +."
_KINDS = ["none", "backbone", "stages:", "norm", "type:", "regex:"]
_TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Stage:
    """From `epoch` on the parameters named in `frozen` do not learn; `parts` is the user's text for them."""

    epoch: int
    parts: str
    frozen: frozenset[str]


def frozen_names(module: nn.Module, head: Collection[str], parts: str) -> frozenset[str]:
    """Return the names of the parameters that `parts` freezes.

    none: none. backbone: all but the head. stages:K: the stem and the first K of `blocks.stages`; stages:-K: the
    stem and all stages but the last K. norm: those of all normalisation layers. type:CLASS: those of all modules of
    that class or a subclass. regex:PATTERN: those in whose name re.search finds it; the rest of the text is the
    pattern. Several joined by + add up.
    Raises UserError for a text that is unknown, matches nothing, or leaves nothing to learn.
    """
    found = {name for part in _split(parts) for name in _names_of(part, module, head)}
    if found and found >= {name for name, _ in module.named_parameters()}:
        raise UserError(
            f"freeze.parts = {parts} freezes every parameter of the model: none is trainable.",
            "Leave out the head, as --freeze backbone does.",
        )
    return frozenset(found)


def _split(parts: str) -> Iterator[str]:
    rest: str | None = parts
    while rest is not None:
        rest = rest.strip()
        if rest.startswith("regex:"):
            yield rest
            return
        part, plus, after = rest.partition("+")
        yield part.strip()
        rest = after if plus else None


def _names_of(part: str, module: nn.Module, head: Collection[str]) -> set[str]:
    kind, colon, value = part.partition(":")
    if part == "none":
        return set()
    if part == "backbone":
        return _some(part, {name for name, _ in module.named_parameters() if name not in head}, "Nothing but a head.")
    if part == "norm":
        found = _names_within(module, _is_norm, recurse=False)
        return _some(part, found, "The model has no normalisation layers with parameters.")
    if kind == "stages" and colon:
        return _first_stages(part, value, stages(module, head))
    if kind == "type" and colon:
        return _of_type(part, value, module)
    if kind == "regex" and colon:
        return _matching(part, value, module)
    hint = nearest(part, _KINDS)
    raise UserError(f"freeze.parts: '{part}' is unknown.", f"{hint}\n{_FORMS}" if hint else _FORMS)


def _some(part: str, names: set[str], why_not: str) -> set[str]:
    if not names:
        raise UserError(f"freeze.parts: {part} means no parameter of this model.", why_not)
    return names


def _first_stages(part: str, value: str, known: list[list[str]]) -> set[str]:
    most = len(known) - 1
    if not re.fullmatch(r"-?[0-9]{1,9}", value.strip()) or not -most <= int(value) <= most:
        if not most:
            hint = "Name its parts by regex:PATTERN or type:CLASS; 'ddp-ft models NAME --layers' lists its layers."
            raise UserError(f"freeze.parts: this model has no stages that follow a stem, so not {part!r}.", hint)
        raise UserError(
            f"freeze.parts: expected a number from -{most} to {most} after 'stages:', not '{value}'.",
            f"This model has a stem and {most} stages; 'ddp-ft models NAME --layers' lists them.",
        )
    first = int(value) if "-" not in value else most + int(value)
    return {name for names in known[: first + 1] for name in names}


def _of_type(part: str, value: str, module: nn.Module) -> set[str]:
    def classes(each: nn.Module) -> list[str]:
        return [base.__name__ for base in type(each).__mro__ if issubclass(base, nn.Module)]

    with_parameters = [each for each in module.modules() if any(True for _ in each.parameters())]
    known = {name for each in with_parameters for name in classes(each)}
    found = _names_within(module, lambda each: value.strip() in classes(each), recurse=True)
    is_there = any(value.strip() in classes(each) for each in module.modules())
    near = "Its modules of that class have no parameters." if is_there else nearest(value.strip(), sorted(known))
    return _some(part, found, near or "'ddp-ft models NAME --layers' lists the classes of a model.")


def _names_within(module: nn.Module, is_one: Callable[[nn.Module], bool], recurse: bool) -> set[str]:
    """The names of all parameters of such modules. Found by identity: a shared parameter has only its first name."""
    found = {id(each) for part in module.modules() if is_one(part) for each in part.parameters(recurse)}
    return {name for name, each in module.named_parameters() if id(each) in found}


def _matching(part: str, pattern: str, module: nn.Module) -> set[str]:
    names = [name for name, _ in module.named_parameters()]
    try:
        found = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(
            f"freeze.parts: '{pattern}' is no regular expression: {error}.", "It is searched for by Python's re.search."
        ) from None
    return _some(part, found, f"The names of its parameters are such as {', '.join(names[:3])}, {names[-1]}.")


def _is_norm(module: nn.Module) -> bool:
    """One of torch, or named so and with only vectors (timm's RmsNorm, its norms with activations, a user's own)."""
    if isinstance(module, _TORCH_NORMS):
        return True
    vectors = (max(p.shape, default=1) == p.numel() for p in module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and all(vectors)


def freeze_parameters(module: nn.Module, names: Collection[str]) -> None:
    """Let all parameters learn but those named."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(name not in names)


def unfreeze_plan(
    schedule: Mapping[str, Any] | None, parts: str, module: nn.Module, head: Collection[str]
) -> list[Stage]:
    """Return the stages in order of epochs; without a schedule one stage for all epochs.

    `schedule` maps epochs to texts as of `frozen_names`. Raises UserError if it does not begin at epoch 0, is out of
    order, freezes again what has learned already, or is given besides `parts` other than none.
    """
    if schedule is None:
        return [Stage(0, parts, frozen_names(module, head, parts))]
    if parts != "none":
        raise UserError(
            f"Both freeze.schedule and freeze.parts = {parts} are given.",
            "Leave freeze.parts at none, and write it as the schedule's entry for epoch 0.",
        )
    plan = [_read_entry(key, value, module, head) for key, value in schedule.items()]
    _check_epochs(plan)
    for before, after in pairwise(plan):
        _check_only_unfreezes(before, after)
    return plan


def _read_entry(key: str, value: Any, module: nn.Module, head: Collection[str]) -> Stage:
    if not re.fullmatch(r"[0-9]{1,9}", str(key).strip()):
        raise UserError(
            f"freeze.schedule: expected whole numbers of epochs (0, 1, ...) as keys, not '{key}'.",
            "Such as {0: backbone, 2: none}.",
        )
    if not isinstance(value, str):
        raise UserError(f"freeze.schedule: epoch {key} has {value!r}; expected a text.", _FORMS)
    try:
        return Stage(int(key), value, frozen_names(module, head, value))
    except UserError as error:
        raise UserError(f"freeze.schedule, epoch {key}: {error.message}", error.hint) from None


def _check_epochs(plan: list[Stage]) -> None:
    epochs = [stage.epoch for stage in plan]
    if 0 not in epochs:
        raise UserError(
            "freeze.schedule has no entry for epoch 0, so it does not say what is frozen at first.",
            "Begin it with one, such as {0: backbone, 2: none}.",
        )
    if epochs != sorted(set(epochs)):
        raise UserError(
            f"freeze.schedule: its epochs are out of order: {', '.join(map(str, epochs))}.",
            "Write each epoch once, in rising order.",
        )


def _check_only_unfreezes(before: Stage, after: Stage) -> None:
    again = sorted(after.frozen - before.frozen)
    if again:
        raise UserError(
            f"Unfreeze schedule out of order: epoch {after.epoch} ({after.parts}) freezes "
            f"{plural(len(again), 'parameter')} that are trainable from epoch {before.epoch} on ({before.parts}), such "
            f"as {again[0]}.",
            "Each entry may only let more of the model learn than the one before it.",
        )


class TrainingMode:
    """Puts a module into training mode, but its frozen parts into evaluation mode.

    A part is frozen if it has parameters and none of them learns; this is read once, here. With `batch_norm` =
    "frozen" all batch norm stays in evaluation mode. Calling costs what `module.train()` does.
    """

    def __init__(self, module: nn.Module, batch_norm: str) -> None:
        self.module = module
        self.still = list(_frozen_parts(module))
        if batch_norm == "frozen":
            self.still += [each for each in module.modules() if isinstance(each, _BatchNorm)]

    def __call__(self) -> None:
        """Set the modes."""
        self.module.train()
        for part in self.still:
            part.eval()


def _frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules that are frozen."""
    for child in module.children():
        learns = [parameter.requires_grad for parameter in child.parameters()]
        if learns and not any(learns):
            yield child
        else:
            yield from _frozen_parts(child)


def frozen_table(module: nn.Module, frozen: Collection[str]) -> dict[str, str]:
    """Return table rows: how many parameters are trainable and, if not all are, how many of each part.

    The parts are the module's children; neighbours that are all trainable, or all frozen, share a row.
    """
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    counts = {part: [0, 0] for part in (name.partition(".")[0] for name in sizes)}
    for name, size in sizes.items():
        counts[name.partition(".")[0]][name in frozen] += size
    total, learning = sum(sizes.values()), sum(free for free, _ in counts.values())
    rows = {"trainable": f"{learning:,} of {plural(total, 'parameter')}"}
    if learning == total:
        return rows
    for _, group in groupby(counts, key=lambda part: part if all(counts[part]) else counts[part][0] > 0):
        parts = list(group)
        label = parts[0] if len(parts) == 1 else f"{parts[0]} ... {parts[-1]}"
        free, held = (sum(counts[part][which] for part in parts) for which in (0, 1))
        counted = ((held, "frozen"), (free, "trainable"))
        rows[f"  {label}"] = ", ".join(f"{count:,} {state}" for count, state in counted if count)
    return rows
