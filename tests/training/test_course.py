"""The course of a run if nobody says."""

import pytest

from ddp_ft.config.loading import make_config
from ddp_ft.training.course import BEST, EVALUATIONS, FEWEST_EPOCHS, LATEST, MOST_EPOCHS, choose_course


def course(images, outputs=10, **keys):
    return choose_course(make_config({name.replace("__", "."): value for name, value in keys.items()}), images, outputs)


def steps(images, outputs=10, **keys):
    batch_size = keys.get("train__batch_size", 32)
    return course(images, outputs, **keys).epochs * -(-images // batch_size)


def test_what_is_asked_for_holds():
    found = course(400, train__epochs=7)
    assert (found.epochs, found.evaluation_epochs, found.why) == (7, 1, "")
    assert (found.ema_decay, found.choice) == (0.0, BEST)
    assert course(400, train__epochs=7, eval__every_epochs=3).evaluation_epochs == 3


def test_nobody_says_anything():
    found = course(400)
    assert found.ema_decay > 0.99 and found.choice == LATEST
    asked = course(400, ema__decay=0.0, eval__choose=BEST)
    assert (asked.ema_decay, asked.choice, asked.epochs) == (0.0, BEST, found.epochs)
    assert course(400, freeze__parts="backbone", freeze__cache_features=True).ema_decay == 0.0


def test_small_sets_get_as_many_steps_and_larger_ones_more_in_fewer_epochs():
    sizes = (100, 400, 1_000, 4_000, 10_000)
    found = [course(size).epochs for size in sizes]
    assert found == sorted(found, reverse=True)
    assert [steps(size) for size in sizes[:3]] == [pytest.approx(500, rel=0.05)] * 3
    assert [steps(size) for size in sizes[3:]] == [pytest.approx(count, rel=0.05) for count in (1_000, 1_581)]


def test_the_bounds():
    assert course(8).epochs == MOST_EPOCHS
    assert course(1_000_000).epochs == FEWEST_EPOCHS


def test_random_weights_get_more_steps():
    assert steps(1_000, model__weights="none") == pytest.approx(4 * steps(1_000), rel=0.05)


def test_each_of_many_classes_is_seen_often_enough():
    """1,000 images of 500 classes, two of each."""
    assert steps(1_000, outputs=500) * 32 / 500 == pytest.approx(100, rel=0.05)


def test_the_number_of_steps_does_not_depend_on_the_batch_but_for_the_bounds():
    assert steps(4_000, train__batch_size=64) == pytest.approx(steps(4_000), rel=0.1)


def test_every_stage_of_unfreezing_is_reached():
    schedule = {"0": "backbone", "9": "none"}
    assert course(1_000_000, freeze__schedule=schedule).epochs == 10


@pytest.mark.parametrize("images", [10, 100, 1_000, 100_000])
def test_it_is_evaluated_about_twenty_times_at_most(images):
    found = course(images)
    assert found.epochs / found.evaluation_epochs <= EVALUATIONS
    assert course(images, eval__every_epochs=1).evaluation_epochs == 1
    assert f"{images:,} images of 10 classes" in found.why
