"""Which of the evaluated models becomes the best one."""

import math

import pytest

from ddp_ft.run_folder.checkpoints import Score
from ddp_ft.training.choice import is_near, standard_error


def test_the_error_of_a_share_is_that_of_so_many_coins():
    assert standard_error("accuracy", 0.8, 6400) == pytest.approx(0.005, rel=1e-3)
    assert standard_error("auroc", 0.8, 6400) == pytest.approx(0.005, rel=1e-3)
    assert standard_error("macro_f1", 0.5, 100) == pytest.approx(0.05)


def test_few_images_that_are_all_right_are_not_certain():
    """As with 31 of 32 for 30 of 30."""
    assert standard_error("accuracy", 1.0, 30) == pytest.approx((31 / 32 * 1 / 32 / 30) ** 0.5)
    assert standard_error("accuracy", 0.0, 30) == standard_error("accuracy", 1.0, 30)


def test_the_error_of_a_deviation_follows_its_size():
    assert standard_error("rmse", 10.0, 200) == pytest.approx(0.5)
    assert standard_error("rmse/height", 10.0, 200) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["loss", "ece", "r2", "MyMetric"])
def test_of_others_nothing_is_known(metric):
    assert standard_error(metric, 0.5, 100) == 0.0


def test_no_images_no_error():
    assert standard_error("accuracy", 0.5, 0) == 0.0


def test_near():
    top = Score(0.80, -0.5)
    assert is_near(Score(0.76, -9.0), top, 0.05)
    assert not is_near(Score(0.74, -0.1), top, 0.05)
    assert is_near(Score(0.80, -0.4), top, 0.0) and not is_near(Score(0.79, -0.4), top, 0.0)
    assert not is_near(Score(-math.inf), top, 0.05)
