"""A library's model with its arguments, and what can be asked of it by such an argument."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ddp_ft.errors import UserError
from ddp_ft.models.introspection import Dropout, build_shapes, dropouts_before
from ddp_ft.models.libraries.base import USER_FILES, get_library

# timm's and torchvision's modules of stochastic depth, with the attribute that holds the rate. By name, since many
# models carry a copy of their own.
_STOCHASTIC_DEPTH = {"DropPath": "drop_prob", "StochasticDepth": "p"}


@dataclass(frozen=True)
class Blueprint:
    """What a library's create function is called with.

    `given` is the model's name as the user wrote it, `inner` without the library's own, `name` what the create function
    takes.
    """

    given: str
    library: str
    inner: str
    name: str
    arguments: dict[str, Any]

    def create(self) -> nn.Module:
        """The module, with random weights."""
        return get_library(self.library).create(self.name, self.arguments)

    def shapes(self) -> nn.Module:
        """The module on the meta device, if it can be built there."""
        return build_shapes(self.create)

    def also(self, **more: Any) -> "Blueprint":
        """With these arguments too."""
        return replace(self, arguments={**self.arguments, **more})


def with_drop_path(plan: Blueprint, rate: float) -> Blueprint:
    """With stochastic depth of that rate; UserError if the model takes none.

    Libraries let it rise with the depth, up to `rate` or nearly so in the last block.
    """
    library = get_library(plan.library)
    for argument in library.DROP_PATH:
        candidate = plan.also(**{argument: rate})
        try:
            module = candidate.shapes()
        except Exception:  # the model does not know the argument
            continue
        # Some take any argument and use none of it. A user's own modules may have any name, so there it is believed.
        if plan.library == USER_FILES or rate == 0 or max(depth_rates(module), default=0.0) > 0:
            return candidate
    if rate == 0 and not any(depth_rates(plan.shapes())):
        return plan
    raise UserError(
        f"{plan.given} takes no {' or '.join(library.DROP_PATH)}: its stochastic depth cannot be set.",
        "Leave model.drop_path out, or choose a model that has it.",
    )


def depth_rates(module: nn.Module) -> list[float]:
    """The rates of the modules of stochastic depth, in the order of the network."""
    parts = [(part, _STOCHASTIC_DEPTH.get(type(part).__name__)) for part in module.modules()]
    return [float(getattr(part, attribute, None) or 0.0) for part, attribute in parts if attribute]


def with_head_dropout(
    plan: Blueprint, shapes: nn.Module, head: frozenset[str], size: tuple[int, int], rate: float
) -> tuple[Blueprint, str | None]:
    """The dropout right before the head set to `rate`: by an argument, or by that of an nn.Dropout there.

    `shapes` is the blueprint's module on the meta device; it is run in training mode.
    Gives the blueprint, and the name of the nn.Dropout whose rate is to be set; "" where none needs to be, None where
    the model has no dropout there. Raises UserError for a dropout before the head that nothing can change.
    """
    own = _dropouts(plan, shapes, head, size)
    if _share(own) == _share([Dropout(rate)]):
        return plan, ""
    for argument in get_library(plan.library).DROPOUT:
        candidate = plan.also(**{argument: rate})
        try:
            module = candidate.shapes()
        except Exception:  # the model does not know the argument
            continue
        if _share(_dropouts(candidate, module, head, size)) == _share([Dropout(rate)]):
            return candidate, ""
    named = [each.module for each in own if each.module][-1:]
    others = _share([each for each in own if each.module not in named])
    if others:
        raise UserError(
            f"{plan.given} has a dropout of its own before its head ({others:g}), which cannot be set from outside.",
            "Leave head.dropout out.",
        )
    return plan, named[0] if named else None


def _dropouts(plan: Blueprint, shapes: nn.Module, head: frozenset[str], size: tuple[int, int]) -> list[Dropout]:
    try:
        return dropouts_before(shapes, head, size)
    except Exception:  # some operations know no meta device
        with torch.random.fork_rng(devices=[]):
            return dropouts_before(plan.create(), head, size)


def _share(dropouts: list[Dropout]) -> float:
    """Of what all of them together let nothing through."""
    kept = 1.0
    for each in dropouts:
        kept *= 1 - each.rate
    return round(1 - kept, 9)
