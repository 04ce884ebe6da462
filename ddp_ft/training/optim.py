"""Parameter groups by name, and the optimizer over them (timm's, by name)."""

import inspect
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ddp_ft.config.overrides import Override, as_number, parse_override
from ddp_ft.config.schema import OptimConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError, nearest, one_line
from ddp_ft.models.blocks import block_depths
from ddp_ft.models.libraries import bare_timm as timm
from ddp_ft.models.rate_factors import rate_factors

ParamGroups = list[dict[str, Any]]
# Of a parameter: whether it is in the head, its depth, the position of its override, whether it is decayed, and the
# factor of its rate for its size.
GroupKey = tuple[bool, int, int, bool, float]

# Optimizers of timm that training cannot use, and why.
UNUSABLE = {"adahessian": "it needs second derivatives, which training does not compute"}
# Arguments of optimizers that are keys of OptimConfig.
OWN_KEYS = ("lr", "weight_decay", "momentum", "betas")
# Kron draws random numbers. Only with this argument are they the same on all ranks and after a restart.
DETERMINISTIC = "deterministic"
# Optimizers whose fused kernels take a quarter of the time on a CPU, and read `found_inf` on the device, so that no
# step waits to know whether it was bad; and the arguments by which optim.options chooses an implementation itself.
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
IMPLEMENTATIONS = {"fused", "foreach", "capturable", "differentiable"}
# With it SGD's first step differs from one that begins with the momentum 0.
DAMPENING = "dampening"
MOMENTUM = "momentum_buffer"  # the name of it in SGD's state


def param_groups(
    module: nn.Module,
    head: Collection[str],
    config: OptimConfig,
    depths: Mapping[str, int] | None = None,
    factors: Mapping[str, float] | None = None,
) -> ParamGroups:
    """Return groups of all parameters that learn: by backbone and head, depth, override, with and without weight decay.

    Norm weights, biases and the model's `no_weight_decay()` are not decayed: decay there only hurts (arXiv 1812.01187,
    section 3.1). Each group has a `name` and the `lr_scale` by which its rate is multiplied: that of an override; else
    `head_lr_scale` in the head, and layer_decay ^ (largest depth - depth) elsewhere (arXiv 2106.08254), times the
    parameter's own factor. `depths`: the depth of each parameter, 0 in the stem; needed only for a layer decay.
    `factors`: 1 for what is not in it. Raises UserError for overrides without effect.
    """
    overrides = [parse_override(pattern, values) for pattern, values in (config.overrides or {}).items()]
    exempt, depths, factors = undecayed(module), depths or {}, factors or {}
    rules = _match(overrides, [name for name, _ in module.named_parameters()], exempt)
    groups: dict[GroupKey, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            depth = depths[name] if config.layer_decay < 1 and name not in head else 0
            factor = factors.get(name, 1.0) if name not in head else 1.0
            key = (name in head, depth, rules[name], name not in exempt, factor)
            groups.setdefault(key, []).append(parameter)
    largest = max(depths.values(), default=0)
    return [_group(groups[key], key, overrides, config, largest) for key in sorted(groups)]


def with_rate_factors(model: BuiltModel, config: OptimConfig, earlier: Mapping[str, float] | None = None) -> BuiltModel:
    """Return the model, whose weights are those that were loaded, with the factors of its rates, if they are asked
    for: those of an `earlier` start, since the file may have changed; else those that follow from the weights."""
    if not config.relative:
        return model
    return replace(model, rate_factors=rate_factors(model) if earlier is None else earlier)


def groups_of(model: BuiltModel, config: OptimConfig, lr: float) -> ParamGroups:
    """Return the groups of all parameters of a model that learn now, at that base rate."""
    depths = block_depths(model.module, model.head) if config.layer_decay < 1 else None
    return param_groups(model.module, model.head, replace(config, lr=lr), depths, model.rate_factors)


def optimizer_of(model: BuiltModel, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Return a fresh optimizer over all parameters of a model that learn now, at that base rate."""
    return make_optimizer(groups_of(model, config, lr), config)


def undecayed(module: nn.Module) -> frozenset[str]:
    """Return the names of parameters without weight decay and penalties: vectors, and the model's own list."""
    own_list: Callable[[], Collection[str]] = getattr(module, "no_weight_decay", tuple)
    return frozenset(own_list()) | {name for name, p in module.named_parameters() if p.ndim <= 1}


def _group(
    params: list[nn.Parameter], key: GroupKey, overrides: list[Override], config: OptimConfig, largest_depth: int
) -> dict[str, Any]:
    in_head, depth, rule, decays, factor = key
    name, scale, weight_decay = "backbone", config.layer_decay ** (largest_depth - depth), config.weight_decay
    if in_head:
        name, scale = "head", config.head_lr_scale
    elif config.layer_decay < 1:
        name = f"depth{depth:02d}"
    if factor != 1:
        name, scale = f"{name}_x{factor:g}", scale * factor
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


def _match(overrides: list[Override], names: list[str], exempt: Collection[str]) -> dict[str, int]:
    """Return for each parameter the position of its override in the list; the list's length means none."""
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
    """Return timm's optimizer of that name over these groups, which have their rates if config.lr is `auto`.

    A step on two small tensors is tried first. UserError for all that the optimizer refuses then: betas and options
    that it does not have, values out of range, a missing compiler; and if nothing is to learn.
    """
    if not groups:
        raise UserError("Nothing is trainable: all its parameters are frozen.", "See --freeze.")
    # Never without a rate: some optimizers (adafactor) would choose one and not follow the schedule.
    config = replace(config, lr=config.lr or groups[0]["lr"])
    try:
        arguments = _arguments(config)
        _try_a_step(config, arguments, groups[0]["params"][0].device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--optimizer {config.name} refuses these settings: {one_line(error)}.") from error
    return _create(groups, config, arguments)


def _create(groups: ParamGroups, config: OptimConfig, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    # weight_decay = 0 here, since each group has its own.
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        groups, opt=config.name, lr=config.lr, weight_decay=0.0, momentum=config.momentum, **arguments
    )
    for group in optimizer.param_groups:
        _set_peak_rate(group)
    _begin_momentum(optimizer)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give all parameters of a fused SGD the momentum 0. torch would allocate it in the first step without filling it,
    and if that step is bad the kernel writes nothing, so that the next one would add whatever was in that memory."""
    if not (isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["fused"]):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get(MOMENTUM) is None:
                state[MOMENTUM] = torch.zeros_like(parameter)


def _set_peak_rate(group: dict[str, Any]) -> None:
    """Set the peak with which the "corrected" decays of timm compare the rate: here each group has its own."""
    if "max_lr_snapshot" in group:
        group["max_lr_snapshot"] = group["lr"]


def _try_a_step(config: OptimConfig, arguments: dict[str, Any], device: torch.device) -> None:
    kernel, bias = (nn.Parameter(torch.ones(shape, device=device)) for shape in ((4, 3, 3, 3), (4,)))
    kernel.grad, bias.grad = torch.ones_like(kernel), torch.ones_like(bias)
    _create([{"params": [kernel, bias], "weight_decay": config.weight_decay}], config, arguments).step()


def _arguments(config: OptimConfig) -> dict[str, Any]:
    """Return the optimizer's arguments besides rate, weight decay and momentum."""
    info = timm.optim.get_optimizer_info(_base_name(config.name))
    optimizer_class = timm.optim.get_optimizer_class(_base_name(config.name), bind_defaults=False)
    accepted = [each for each in inspect.signature(optimizer_class).parameters if each != "params"]
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
    if optimizer_class in FUSED and not arguments.keys() & IMPLEMENTATIONS and not arguments.get(DAMPENING):
        arguments["fused"] = True
    return arguments


def _base_name(name: str) -> str:
    return name.lower().removeprefix("lookahead_")


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
    return tuple(map(as_number, value)) if isinstance(value, (list, tuple)) else as_number(value)


def check_optimizer(name: str) -> None:
    """Raise UserError unless timm has an optimizer of that name (also as lookahead_NAME) that can train here."""
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
    """Add the parameters of `groups` that the optimizer does not have yet, as further groups.

    The others keep their group and state. A name that is taken gets a number: backbone_2. The result depends on the
    calls alone, so the same calls on a fresh optimizer make it ready for a stored state.
    """
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in groups:
        fresh = [p for p in group["params"] if id(p) not in present]
        if fresh:
            names = {each["name"] for each in optimizer.param_groups}
            optimizer.add_param_group({**group, "params": fresh, "name": _free_name(group["name"], names)})
            _set_peak_rate(optimizer.param_groups[-1])
            _begin_sums(optimizer, optimizer.param_groups[-1])
    _begin_momentum(optimizer)


def _begin_sums(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Give parameters that came later the state that Adagrad makes when it is made, and in torch 2.11 only then."""
    if isinstance(optimizer, torch.optim.Adagrad):
        value = group["initial_accumulator_value"]
        optimizer.state.update(torch.optim.Adagrad([dict(group)], initial_accumulator_value=value).state)


def _free_name(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of each group to `rate` times the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
