"""Marks of single cases."""

import pytest


def slowly(*cases):
    """Cases of a parametrised test that the quick suite leaves out."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
