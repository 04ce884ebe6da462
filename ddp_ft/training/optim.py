"""Parameter groups by name, and the optimizer over them (timm's, by name)."""

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ddp_ft.config.schema import OptimConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError, nearest
from ddp_ft.models.blocks import block_depths
from ddp_ft.models.libraries import bare_timm as timm

ParamGroups = list[dict[str, Any]]

LOOKAHEAD = "lookahead_"
# Optimizers that timm makes but that a training step here cannot serve, and why.
UNUSABLE = {"adahessian": "it wants second derivatives, which training does not compute"}
# Arguments of optimizers that have keys of their own in OptimConfig.
OWN_KEYS = ("lr", "weight_decay", "momentum", "betas")
# Kron draws random numbers. Only with this argument are they the same on all ranks and after a restart.
DETERMINISTIC = "deterministic"
# One kernel updates all that a parameter needs, in a quarter of the time on a CPU; and these look at `found_inf` on the
# device, so that no step waits to know whether it was bad. Not if optim.options names one of the ways to go.
FUSED_ONES = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
WAYS = {"fused", "foreach", "capturable", "differentiable"}


@dataclass(frozen=True)
class Override:
    """What optim.overrides says of the parameters whose name `pattern` is found in."""

    pattern: "re.Pattern[str]"
    lr_scale: float | None
    weight_decay: float | None

    @property
    def label(self) -> str:
        """The key that it stands under, for messages."""
        return f"optim.overrides '{self.pattern.pattern}'"


def param_groups(
    module: nn.Module, head: Collection[str], config: OptimConfig, depths: Mapping[str, int] | None = None
) -> ParamGroups:
    """Groups of all parameters that learn: by backbone and head, depth, override, with and without weight decay.

    Norm weights, biases and what the model lists in `no_weight_decay()` are not decayed: decay there only
    hurts (arXiv 1812.01187, section 3.1). Each group has a `name` and the `lr_scale` its rate is multiplied by:
    that of an override; else `head_lr_scale` in the head, and layer_decay ^ (largest depth - depth) elsewhere
    (arXiv 2106.08254). `depths` has the depth of each parameter, 0 in the stem; needed for a layer decay alone.

    Raises UserError for overrides that say nothing, or nothing that can be done.
    """
    overrides = parse_overrides(config.overrides)
    exempt = undecayed(module)
    rules = _match(overrides, [name for name, _ in module.named_parameters()], exempt)
    groups: dict[tuple[bool, int, int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            depth = _depth(name, depths) if config.layer_decay < 1 and name not in head else 0
            key = (name in head, depth, rules[name], name not in exempt)
            groups.setdefault(key, []).append(parameter)
    largest = max(depths.values(), default=0) if depths else 0
    return [
        _group(params, key, overrides, config, largest)
        for key, params in sorted(groups.items(), key=lambda item: item[0])
    ]


def groups_of(model: BuiltModel, config: OptimConfig, lr: float) -> ParamGroups:
    """The groups of all parameters of a model that learn now, at that base rate."""
    depths = block_depths(model.module, model.head) if config.layer_decay < 1 else None
    return param_groups(model.module, model.head, replace(config, lr=lr), depths)


def undecayed(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that neither weight decay nor a penalty pulls at: vectors, and the model's own list."""
    own_list: Callable[[], Collection[str]] = getattr(module, "no_weight_decay", tuple)
    return frozenset(own_list()) | {name for name, p in module.named_parameters() if p.ndim <= 1}


def _depth(name: str, depths: Mapping[str, int] | None) -> int:
    assert depths is not None, "a layer decay needs depths"
    return depths[name]


def _group(
    params: list[nn.Parameter],
    key: tuple[bool, int, int, bool],
    overrides: list[Override],
    config: OptimConfig,
    largest_depth: int,
) -> dict[str, Any]:
    in_head, depth, rule, decays = key
    has_depths = config.layer_decay < 1
    name = "head" if in_head else f"depth{depth:02d}" if has_depths else "backbone"
    scale = config.head_lr_scale if in_head else config.layer_decay ** (largest_depth - depth) if has_depths else 1.0
    weight_decay = config.weight_decay
    if rule < len(overrides):
        override = overrides[rule]
        name += f"_override{rule + 1}"
        scale = scale if override.lr_scale is None else override.lr_scale
        weight_decay = weight_decay if override.weight_decay is None else override.weight_decay
    assert config.lr is not None  # `auto` is resolved before
    return {
        "params": params,
        "name": name + ("" if decays else "_no_decay"),
        "lr_scale": scale,
        "lr": config.lr * scale,
        "weight_decay": weight_decay if decays else 0.0,
    }


def parse_overrides(given: Mapping[str, Any] | None) -> list[Override]:
    """The values of optim.overrides, in their order. UserError for a bad regex, an unknown name or a bad value."""
    return [_parse_override(pattern, values) for pattern, values in (given or {}).items()]


def _parse_override(pattern: str, values: Any) -> Override:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"optim.overrides '{pattern}' is not a regular expression: {error}.") from None
    known = ["lr_scale", "weight_decay"]
    if not isinstance(values, Mapping) or not values:
        raise UserError(
            f"optim.overrides '{pattern}' = {values!r} is not a mapping of {' and '.join(known)}.",
            "Example: --set 'optim.overrides={\"^stem\": {lr_scale: 0.1, weight_decay: 0}}'",
        )
    for name in values:
        if name not in known:
            hint = nearest(str(name), known) or f"It may set {' and '.join(known)}."
            raise UserError(f"optim.overrides '{pattern}' sets '{name}', which is unknown.", hint)
    parsed = {name: _number(f"optim.overrides '{pattern}': {name}", value) for name, value in values.items()}
    if parsed.get("lr_scale") == 0:
        raise UserError(
            f"optim.overrides '{pattern}': lr_scale = 0 would only seem to train.",
            f"To keep these parameters as they are: --freeze 'regex:{pattern}'",
        )
    return Override(compiled, parsed.get("lr_scale"), parsed.get("weight_decay"))


def _number(label: str, value: Any) -> float:
    number = math.nan if isinstance(value, bool) else _as_number(value)
    if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise UserError(f"{label} = {value!r} is not a number of at least 0.")
    return float(number)


def _as_number(value: Any) -> Any:
    """YAML reads 1e-3 as a text; here it is the number that was meant. Anything else stays."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _match(overrides: list[Override], names: list[str], exempt: Collection[str]) -> dict[str, int]:
    """Which override each parameter goes by, as its place; their number stands for none."""
    rules = {name: len(overrides) for name in names}
    for place, override in enumerate(overrides):
        matched = [name for name in names if override.pattern.search(name)]
        taken = [name for name in matched if rules[name] == len(overrides)]
        if not matched:
            raise UserError(f"{override.label} matches no parameter.", nearest(override.pattern.pattern, names))
        if not taken:
            raise UserError(
                f"{override.label} does nothing: an earlier one matches all its parameters, such as {matched[0]}.",
                "The first match wins: put the narrower expression first.",
            )
        if override.lr_scale is None and all(name in exempt for name in taken):
            raise UserError(
                f"{override.label} sets a weight decay only for parameters that are never decayed, such as {taken[0]}.",
                "Norms, biases and what the model itself exempts have none.",
            )
        rules.update(dict.fromkeys(taken, place))
    return rules


def make_optimizer(groups: ParamGroups, config: OptimConfig) -> torch.optim.Optimizer:
    """timm's optimizer of that name over these groups, which bring their rates where config.lr is `auto`.

    A step on two small tensors is tried first, so that UserError tells here of all that the optimizer refuses:
    betas and options that it does not have, values out of range, a missing compiler. Also if nothing is to learn.
    """
    if not groups:
        raise UserError("Nothing of the model learns: all its parameters are frozen.", "See --freeze.")
    # Never without a rate: some optimizers (adafactor) would make one up and not follow the schedule.
    config = replace(config, lr=config.lr or groups[0]["lr"])
    try:
        arguments = _arguments(config)
        _try_a_step(config, arguments, groups[0]["params"][0].device)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise UserError(f"--optimizer {config.name} refuses these settings: {reason}") from error
    return _create(groups, config, arguments)


def _create(groups: ParamGroups, config: OptimConfig, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    # weight_decay = 0 here, since each group brings its own.
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        groups, opt=config.name, lr=config.lr, weight_decay=0.0, momentum=config.momentum, **arguments
    )
    for group in optimizer.param_groups:
        _set_peak_rate(group)
    return optimizer


def _set_peak_rate(group: dict[str, Any]) -> None:
    """The "corrected" decays of timm compare the rate with its peak, which is each group's own here."""
    if "max_lr_snapshot" in group:
        group["max_lr_snapshot"] = group["lr"]


def _try_a_step(config: OptimConfig, arguments: dict[str, Any], device: torch.device) -> None:
    kernel, bias = (nn.Parameter(torch.ones(shape, device=device)) for shape in ((4, 3, 3, 3), (4,)))
    kernel.grad, bias.grad = torch.ones_like(kernel), torch.ones_like(bias)
    _create([{"params": [kernel, bias], "weight_decay": config.weight_decay}], config, arguments).step()


def _arguments(config: OptimConfig) -> dict[str, Any]:
    """The optimizer's arguments besides rate, weight decay and momentum."""
    info = timm.optim.get_optimizer_info(_base_name(config.name))
    accepted = _accepted_arguments(config.name)
    arguments: dict[str, Any] = {}
    if config.momentum == 0 and (info.defaults or {}).get("nesterov"):
        arguments["nesterov"] = False  # torch: Nesterov's needs a momentum
    if config.betas is not None:
        _check_betas(config, info.num_betas if "betas" in accepted else 0)
        arguments["betas"] = config.betas
    options = config.options or {}
    for name in options:
        _check_option(config.name, name, accepted)
    arguments.update({name: _as_argument(value) for name, value in options.items()})
    if DETERMINISTIC in accepted:
        arguments[DETERMINISTIC] = True
    optimizer_class = timm.optim.get_optimizer_class(_base_name(config.name), bind_defaults=False)
    if optimizer_class in FUSED_ONES and not arguments.keys() & WAYS:
        arguments["fused"] = True
    return arguments


def _base_name(name: str) -> str:
    return name.lower().removeprefix(LOOKAHEAD)


def _accepted_arguments(name: str) -> list[str]:
    optimizer_class = timm.optim.get_optimizer_class(_base_name(name), bind_defaults=False)
    return [each for each in inspect.signature(optimizer_class).parameters if each != "params"]


def _check_betas(config: OptimConfig, count: int) -> None:
    assert config.betas is not None
    given = ", ".join(f"{beta:g}" for beta in config.betas)
    if count == 0:
        raise UserError(f"optim.betas = {given}: --optimizer {config.name} has no betas.", "Leave the key out.")
    if len(config.betas) != count:
        raise UserError(f"optim.betas = {given}: --optimizer {config.name} takes {count} of them.")


def _check_option(optimizer: str, name: str, accepted: list[str]) -> None:
    if name in OWN_KEYS:
        raise UserError(f"optim.options: '{name}' has a key of its own.", f"Use --set optim.{name}=...")
    usable = sorted(each for each in accepted if each not in (*OWN_KEYS, DETERMINISTIC))
    if name not in usable:
        hint = nearest(name, usable)
        raise UserError(
            f"optim.options: --optimizer {optimizer} has no argument '{name}'.",
            f"{hint}{' ' if hint else ''}It takes {', '.join(usable) or 'none'}.",
        )


def _as_argument(value: Any) -> Any:
    return tuple(map(_as_number, value)) if isinstance(value, (list, tuple)) else _as_number(value)


def check_optimizer(name: str) -> None:
    """UserError unless timm has an optimizer of that name (also as lookahead_NAME) that can train here."""
    known = [str(known_name) for known_name in timm.optim.list_optimizers()]
    base = _base_name(name)
    if base not in known:
        raise UserError(f"--optimizer {name}: timm has no optimizer of that name.", nearest(base, known))
    if base in UNUSABLE:
        raise UserError(f"--optimizer {name} cannot be used: {UNUSABLE[base]}.", "The default is adamw.")
    try:
        timm.optim.get_optimizer_class(base)
    except (AssertionError, ImportError) as error:
        raise UserError(f"--optimizer {name} cannot be used here: {error}.", "The default is adamw.") from error


def extend_groups(optimizer: torch.optim.Optimizer, groups: ParamGroups) -> None:
    """Take in the parameters of `groups` that the optimizer does not have yet, as further groups.

    Those that it has keep their place, group and state. A name that is taken gets a number: backbone_2. The result
    depends on the calls alone, so the same calls on a fresh optimizer make it ready for a stored state.
    """
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in groups:
        fresh = [p for p in group["params"] if id(p) not in present]
        if fresh:
            names = {each["name"] for each in optimizer.param_groups}
            optimizer.add_param_group({**group, "params": fresh, "name": _free_name(group["name"], names)})
            _set_peak_rate(optimizer.param_groups[-1])


def _free_name(name: str, taken: Collection[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
