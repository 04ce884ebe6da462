"""How messages quote names and exceptions of others."""

import pytest

from ddp_ft.errors import MOST_REASON, known_names, listed, one_line, shortened, typed_line


def test_an_exception_in_one_line() -> None:
    assert one_line(ValueError("no such\n  layer.")) == "no such layer"
    assert one_line(KeyError()) == "KeyError"
    assert typed_line(OSError("gone")) == "OSError: gone"
    assert one_line(ValueError("x" * MOST_REASON)) == "x" * MOST_REASON
    long = one_line(ValueError("begins" + "x" * MOST_REASON + "cause"))
    assert long.startswith("begins") and long.endswith("cause") and len(long) < MOST_REASON + 10


@pytest.mark.parametrize(("limit", "text"), [(3, "a, b, c"), (2, "a, b and 1 more")])
def test_the_first_names(limit: int, text: str) -> None:
    assert shortened(["a", "b", "c"], limit) == text


def test_the_first_lines() -> None:
    assert listed(["a", "b"], 2) == ["  a", "  b"]
    assert listed(["a", "b", "c"], 1) == ["  a", "  ... and 2 more"]


def test_an_unknown_name() -> None:
    assert known_names("huberr", ["huber", "mse"]) == "Did you mean huber?"
    assert known_names("?", ("huber", "mse")) == "Known: huber, mse."
