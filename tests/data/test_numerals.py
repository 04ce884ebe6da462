"""Numbers as people write them: read where there is one way to read them, else a message that shows the ways."""

import math

import numpy as np
import pytest

from ddp_ft.data.numerals import appearance, readings


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1.5", "1e3", "-.5"], [1.5, 1000, -0.5]),
        (["1.234", "2.345"], [1.234, 2.345]),
        (["1,37", "2,5", "-0,375", "3"], [1.37, 2.5, -0.375, 3]),
        (["1,37", "2.5"], [1.37, 2.5]),
        (["1.234,56", "1.234", "12"], [1234.56, 1234, 12]),
        (["1,234.5", "2,000"], [1234.5, 2000]),
        (["1,234,567", "1,234"], [1234567, 1234]),
        (["1 234,5", "12\u00a0345"], [1234.5, 12345]),
        (["1'234.5", "7"], [1234.5, 7]),
        (["1\u2007234", "7"], [1234, 7]),
        (["0,375", "0,5"], [0.375, 0.5]),
        (["1,5e3", "\u22122,5"], [1500, -2.5]),
        (["12 kg", "3.5 kg"], [12, 3.5]),
        (["1,5%", "20%"], [1.5, 20]),
        (["$1,234.50", "$5"], [1234.5, 5]),
        (["3 m²", "4,25 m²"], [3, 4.25]),
    ],
)
def test_one_way(cells, values):
    [way] = readings(cells)
    assert way.values.tolist() == values


@pytest.mark.parametrize(
    ("cells", "first", "second"),
    [
        (["1,234", "5,678"], [1234, 5678], [1.234, 5.678]),
        (["1.234", "1,5"], [1234, 1.5], [1.234, 1.5]),
        (["1,234", "1.5"], [1234, 1.5], [1.234, 1.5]),
    ],
)
def test_two_ways(cells, first, second):
    assert [way.values.tolist() for way in readings(cells)] == [first, second]


@pytest.mark.parametrize("cell", ["12 kg", "0x10", "1,23,45", "12,34.5", "1_000", "2-3", "<5", "a", "", "1 2"])
def test_what_is_no_number_among_numbers(cell):
    [way] = readings(["1.5", "2.25", cell])
    assert np.array_equal(way.values, [1.5, 2.25, math.nan], equal_nan=True)


def test_what_cells_look_like():
    assert appearance(["12 kg", "300 g"]) == "numbers with different units (g, kg)"
    assert appearance(["12 kg", "30 kg"]) == "numbers with the unit kg"
    assert appearance(["2-3", "<5", "12:30"]).startswith("ranges")
    assert appearance(["(1.5)", "1.5D+02", "2*10^3", "0x1F", "٢٫٥"]).startswith("ranges")
    assert appearance(["cat", "dog 2", "a1", "7up", "b-2"]) == ""


def test_each_cell_has_its_own_number_though_different_ones_alone_are_read() -> None:
    [found] = readings(["1,5", "x", "2,25", "1,5", "2,25"])
    np.testing.assert_array_equal(found.values, [1.5, np.nan, 2.25, 1.5, 2.25])
