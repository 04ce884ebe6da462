"""Layers that the forward pass does not use, or uses for some images: the curve is that of one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.runs import column, train_here, train_on

# A gradient of 0 is not the same as none: weights decay, and momentum goes on.
MORE = ("--batch-size", 3, "--lr", 0.01, "--set", "optim.weight_decay=0.3", "--recipe", "full")


@pytest.mark.parametrize("net", ["with_an_unused_layer", "with_a_layer_for_some"])
def test_the_same_curve_as_in_one_process(net: str, shapes: Path, tmp_path: Path) -> None:
    train_here(shapes, tmp_path / "1", *MORE, net=net)
    printed = " ".join(train_on(2, shapes, tmp_path / "2", *MORE, net=net).split())
    assert "does not use 2 of the trainable parameters" in printed and "spare.bias, spare.weight" in printed
    assert ("other parameters had a gradient" in printed) == (net == "with_a_layer_for_some")
    assert column(tmp_path / "2", "loss") == pytest.approx(column(tmp_path / "1", "loss"), rel=1e-4)
    one, two = (load_file(tmp_path / world / "best/model.safetensors") for world in "12")
    assert all(two[name].allclose(one[name], atol=1e-5) for name in one)
