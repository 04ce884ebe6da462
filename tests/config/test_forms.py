"""Texts that are wrong whatever the data and the model are."""

import pytest

from ddp_ft.config.forms import check_forms
from ddp_ft.config.loading import make_config, parse_assignment
from ddp_ft.errors import UserError


def check(*assignments):
    check_forms(make_config(*map(parse_assignment, assignments)))


@pytest.mark.parametrize(
    ("assignment", "fragments"),
    [
        ("head.name=mlp:x", ["mlp:x", "mlp:256,128"]),
        ("head.name=mlpp:8", ["Unknown head", "mlp"]),
        ("loss.name=nope", ["no loss 'nope'", "cross_entropy"]),
        ("loss.name=own.py", ["no loss 'own.py'", "Did you mean own.py:CLASS?"]),
        ("loss.name=ce", ["no loss 'ce'", "cross_entropy"]),
        ("log.profile=10-5", ["10-5", "10-15"]),
        ("data.fold=7", ["k/n", "2/5"]),
        ("schedule.name=multistep", ["schedule.milestones"]),
        ("optim.overrides={'(': {lr_scale: 1}}", ["'('", "regular expression"]),
        ("optim.overrides={x: {rate: 1}}", ["'rate'", "lr_scale"]),
    ],
)
def test_a_wrong_text_is_named_with_what_is_expected(assignment, fragments):
    with pytest.raises(UserError) as refusal:
        check(assignment)
    assert [each for each in fragments if each not in str(refusal.value)] == []


def test_right_texts_pass():
    check("head.name=mlp:8,4", "loss.name=loss.py:Mine", "log.profile=3", "data.fold=1/2")
    check("schedule.name=multistep", "schedule.milestones=1,2", "optim.overrides={'^x': {lr_scale: 0.1}}")
