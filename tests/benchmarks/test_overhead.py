"""The parts whose time is taken are where the benchmark looks for them."""

import functools
import importlib

import pytest

from benchmarks.overhead import PARTS


@pytest.mark.parametrize("module, name", sorted({(module, name) for _, module, name in PARTS}))
def test_a_part_is_there(module, name):
    assert callable(functools.reduce(getattr, name.split("."), importlib.import_module(module)))
