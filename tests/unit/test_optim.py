"""Parameter groups."""

import pytest
import torch
from torch import nn

from ddp_ft.config import make_config
from ddp_ft.errors import UserError
from ddp_ft.optim import check_optimizer, make_optimizer, param_groups, set_rates


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def no_weight_decay(self):
        return {"pos_embed"}


def groups_by_name(**keys):
    module = Tiny()
    config = make_config({"optim.lr": 0.1, **keys}).optim
    optimizer = make_optimizer(param_groups(module, {"head.weight", "head.bias"}, config), config)
    return module, optimizer, {group["name"]: group for group in optimizer.param_groups}


def test_norms_biases_and_exempt_parameters_are_not_decayed():
    module, _, groups = groups_by_name(**{"optim.weight_decay": 0.3})
    assert [id(p) for p in groups["backbone"]["params"]] == [id(module.body.weight)]
    assert len(groups["backbone_no_decay"]["params"]) == 4
    assert (groups["backbone"]["weight_decay"], groups["backbone_no_decay"]["weight_decay"]) == (0.3, 0.0)


def test_the_head_learns_faster():
    _, optimizer, groups = groups_by_name(**{"optim.head_lr_scale": 5})
    set_rates(optimizer, 0.2)
    assert groups["head"]["lr"] == pytest.approx(1.0)
    assert groups["backbone"]["lr"] == pytest.approx(0.2)


def test_frozen_parameters_are_left_out():
    module, _, groups = groups_by_name()
    assert all(p is not module.frozen for group in groups.values() for p in group["params"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "rmsprop"])
def test_optimizers_by_name(name):
    _, optimizer, _ = groups_by_name(**{"optim.name": name})
    check_optimizer(name)
    assert name in type(optimizer).__name__.lower()


def test_momentum_reaches_sgd():
    _, _, groups = groups_by_name(**{"optim.name": "sgd", "optim.momentum": 0.7})
    assert groups["head"]["momentum"] == 0.7


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="adamw"):
        check_optimizer("adamww")
