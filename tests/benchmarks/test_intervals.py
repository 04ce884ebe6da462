"""Intervals against scipy's own, against sums by hand, and against what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.intervals import Interval, over_seeds, over_sets, t_interval


def test_t_interval_is_scipy_s():
    values = [1.0, 2.5, 0.5, 3.0, 1.5]
    found = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(1.7) and found.count == 5


def test_t_interval_by_hand():
    """Mean 2, deviation 1, error 1 / sqrt(3), t of 2 degrees of freedom 4.3027."""
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_one_value_has_no_interval():
    found = t_interval([2.0])
    assert found.mean == 2.0 and math.isnan(found.low) and math.isnan(found.high)
    assert not found.excludes_zero
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


@pytest.mark.parametrize(("low", "high", "expected"), [(0.1, 2, True), (-2, -0.1, True), (-0.1, 2, False)])
def test_excludes_zero(low, high, expected):
    assert Interval(1.0, low, high, 5).excludes_zero == expected


def places(table, models=("m",)):
    """{set: values by seed}, the same for every model."""
    return {(s, m, seed): value for s, values in table.items() for seed, value in enumerate(values) for m in models}


def test_over_seeds_of_two_sets_is_welch_s():
    """The mean of two strata's means is half of x - (-y), so Welch's test of x against -y has twice this interval."""
    x, y = [1.0, 2.0, 4.0, 3.5], [0.0, 5.0, -2.0]
    found = over_seeds(places({"a": x, "b": y}))
    welch = stats.ttest_ind(x, [-value for value in y], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2))
    assert found.mean == pytest.approx((np.mean(x) + np.mean(y)) / 2)


def test_over_seeds_of_one_set_is_student_s():
    values = [1.0, 2.0, 4.0]
    one, plain = over_seeds(places({"a": values})), t_interval(values)
    assert (one.mean, one.low, one.high) == pytest.approx((plain.mean, plain.low, plain.high))


def test_models_that_share_their_images_add_no_certainty():
    table = {"a": [1.0, 2.0, 4.0], "b": [0.0, 1.0, -1.0]}
    one, five = over_seeds(places(table)), over_seeds(places(table, models="vwxyz"))
    assert (five.low, five.high, five.count) == pytest.approx((one.low, one.high, one.count))
    assert over_sets(places(table, models="vw")).low == pytest.approx(over_sets(places(table)).low)


def test_over_sets_takes_each_set_as_one_value():
    found = over_sets(places({"a": [1.0, 3.0], "b": [4.0], "c": [0.0, 0.0, 0.0]}))
    expected = t_interval([2.0, 4.0, 0.0])
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_a_seed_with_a_model_missing_is_left_out():
    table = places({"a": [1.0, 2.0, 9.0]}, models=("m", "n"))
    del table["a", "n", 2]
    assert over_seeds(table).mean == pytest.approx(1.5)
    with pytest.raises(ValueError, match="all models"):
        over_seeds({("a", "m", 0): 1.0, ("a", "n", 1): 2.0})


def test_one_seed_has_a_mean_alone():
    found = over_seeds(places({"a": [1.0], "b": [3.0]}))
    assert found.mean == 2.0 and math.isnan(found.low)


def test_equal_differences_are_certain():
    found = over_seeds(places({"a": [1.0, 1.0], "b": [2.0, 2.0]}))
    assert (found.low, found.high) == (1.5, 1.5)


def test_the_interval_holds_what_it_promises():
    """Of 400 experiments with a true mean of 0 about 95 % have 0 inside; the sets' spreads differ."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        table = {name: generator.normal(0, spread, 5).tolist() for name, spread in (("a", 0.5), ("b", 1), ("c", 2))}
        inside += not over_seeds(places(table)).excludes_zero
    assert 0.92 <= inside / 400 <= 0.98


def test_sets_may_have_different_models():
    """As when models take turns: each set's own are complete, and a seed that lacks one of them is left out."""
    found = {("a", "m", 0): 1.0, ("a", "m", 1): 3.0, ("b", "n", 0): 2.0, ("b", "n", 1): 4.0, ("b", "o", 0): 6.0}
    assert over_sets(found).mean == pytest.approx((2.0 + 4.0) / 2)
