"""Parameter groups by name, and the optimizer over them (timm's, by name)."""

from collections.abc import Callable, Collection
from typing import Any

import timm.optim
import torch
from torch import nn

from ddp_ft.config import OptimConfig
from ddp_ft.errors import UserError, nearest

ParamGroups = list[dict[str, Any]]


def param_groups(module: nn.Module, head: Collection[str], config: OptimConfig) -> ParamGroups:
    """Up to four groups: backbone and head, each with and without weight decay.

    Norm weights, biases and what the model lists in `no_weight_decay()` are not decayed: decay there only
    hurts (arXiv 1812.01187, section 3.1). Each group has a `name` and the `lr_scale` its rate is multiplied by.
    """
    list_exempt: Callable[[], Collection[str]] = getattr(module, "no_weight_decay", tuple)
    exempt = set(list_exempt())
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in exempt
            groups.setdefault((name in head, decays), []).append(parameter)
    return [
        {
            "params": params,
            "name": ("head" if in_head else "backbone") + ("" if decays else "_no_decay"),
            "lr_scale": config.head_lr_scale if in_head else 1.0,
            "lr": config.lr * (config.head_lr_scale if in_head else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (in_head, decays), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(groups: ParamGroups, config: OptimConfig) -> torch.optim.Optimizer:
    """timm's optimizer of that name over these groups. UserError for settings that it refuses."""
    # timm's sgd is Nesterov's, which must have a momentum; its plain one is called momentum.
    name = "momentum" if config.name.lower() == "sgd" and config.momentum == 0 else config.name
    try:
        # weight_decay = 0 here, since each group brings its own.
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            groups, opt=name, lr=config.lr, weight_decay=0.0, momentum=config.momentum
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"--optimizer {config.name} refuses these settings: {error}") from error
    return optimizer


def check_optimizer(name: str) -> None:
    """UserError unless timm has an optimizer of that name."""
    known = [str(known_name) for known_name in timm.optim.list_optimizers()]
    if name.lower() not in known:
        raise UserError(f"--optimizer {name}: timm has no optimizer of that name.", nearest(name, known))


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
