"""Numbers and nouns as people read them."""

import math

import pytest

from ddp_ft.texts import count, percent, plural, readable


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (13391.2, "13,391"), (12390, "12,390"), (999.6, "999.6"), (1234567, "1,234,567"), (-12345.6, "-12,346"),
        (0.003376, "0.003376"), (0.62512, "0.6251"), (0, "0"), (999.99, "1,000"), (1e-7, "1e-07"), (3e20, "3e+20"),
        (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_figures_have_no_exponent_where_people_read_them(number, text):
    assert readable(number) == text


def test_nouns_fit_their_numbers():
    assert [plural(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
    assert [plural(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert (count(1234.4), percent(0.625), percent(0.625, 1)) == ("1,234", "62 %", "62.5 %")
