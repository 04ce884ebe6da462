"""Cadence and learning rate as functions of the step."""

import pytest

from ddp_ft.schedule import SCHEDULES, is_due, lr_factor


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_to_the_peak(name):
    factors = [lr_factor(step, 100, name, warmup_steps=10) for step in range(11)]
    assert factors == sorted(factors)
    assert 0 < factors[0] < factors[9] < factors[10] == 1.0


def test_cosine_halves_in_the_middle_and_ends_at_the_final_factor():
    assert lr_factor(50, 100, "cosine") == pytest.approx(0.5)
    assert lr_factor(100, 100, "cosine", final_factor=0.1) == pytest.approx(0.1)


def test_linear_falls_in_equal_steps():
    assert [lr_factor(s, 4, "linear") for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_constant_stays():
    assert {lr_factor(s, 10, "constant") for s in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("step", "every", "last", "due"),
    [(0, 5, 20, False), (5, 5, 20, True), (6, 5, 20, False), (20, 7, 20, True), (7, 0, 20, False), (20, 0, 20, True)],
)
def test_is_due(step, every, last, due):
    assert is_due(step, every, last) is due
