"""Factors of the rates, by hand."""

import pytest
import torch
from torch import nn

from ddp_ft.contracts import BuiltModel
from ddp_ft.models.rate_factors import rate_factors


class Sized(nn.Module):
    """Parameters of one value each, by name."""

    def __init__(self, **values: float) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.full((2, 3), value)))


def factors(module: nn.Module, head: frozenset[str] = frozenset()) -> dict[str, float]:
    return rate_factors(BuiltModel(module, None, None, {}, head))


def test_twice_as_large_learns_twice_as_fast():
    found = factors(Sized(usual=0.1, doubled=-0.2, halved=0.05, large=3.0, small=0.02))
    assert found == {"usual": 1.0, "doubled": 2.0, "halved": 0.5, "large": 32.0, "small": 0.25}


def test_what_is_zero_learns_as_what_is_small():
    assert factors(Sized(zero=0.0, small=0.01)) == {"zero": 0.125, "small": 0.125}


def test_the_root_mean_square_counts_and_not_the_mean():
    module = Sized(weight=0.0)
    module.weight.data = torch.tensor([0.3, -0.3, 0.0, 0.0])  # mean 0, root mean square 0.21
    assert factors(module) == {"weight": 2.0}


def test_the_head_is_left_out_as_it_is_new():
    assert factors(Sized(body=0.1, head=0.4), frozenset({"head"})) == {"body": 1.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_left_to_the_first_step(value):
    assert factors(Sized(weight=value)) == {"weight": 1.0}


def test_nothing_has_no_size():
    module = nn.Module()
    module.empty = nn.Parameter(torch.zeros(0, 3))
    assert factors(module) == {"empty": 1.0}
