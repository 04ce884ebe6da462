"""Which of the evaluated models becomes the best one."""

import math
from types import SimpleNamespace

import pytest

from ddp_ft.run_folder.checkpoints import Score
from ddp_ft.training.choice import is_chosen, is_near, ranked, standard_error
from ddp_ft.training.course import BEST, LATEST


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


def run(choice):
    """Of 64 images to validate on, by accuracy, of equals by the loss."""
    plan = SimpleNamespace(choice=choice, val_samples=64)
    return SimpleNamespace(
        plan=plan, metric="accuracy", score=lambda metrics: Score(metrics["accuracy"], -metrics["loss"])
    )


TOP, NEAR, FAR = ({"accuracy": accuracy, "loss": 1.0} for accuracy in (0.8, 0.76, 0.7))


def test_the_first_and_any_better_one_are_chosen():
    for choice in (BEST, LATEST):
        assert is_chosen(run(choice), FAR, {}) and is_chosen(run(choice), TOP, NEAR)
        assert is_chosen(run(choice), {**TOP, "loss": 0.9}, TOP)


def test_a_later_one_that_is_near_is_chosen_if_that_was_asked_for():
    assert is_chosen(run(LATEST), NEAR, TOP) and not is_chosen(run(BEST), NEAR, TOP)
    assert is_chosen(run(LATEST), TOP, TOP) and not is_chosen(run(BEST), TOP, TOP)
    assert not is_chosen(run(LATEST), FAR, TOP)


def test_only_the_latest_ranks_by_its_step():
    assert ranked(run(LATEST), Score(0.5), 7).chosen == 7
    assert ranked(run(BEST), Score(0.5), 7).chosen == 0
