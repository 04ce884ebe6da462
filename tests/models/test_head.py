"""How a new head begins."""

import math

import pytest

from ddp_ft.models.head import HEAD_STD, initialise_head
from tests.support import nets
from tests.support.runs import column, train_here


def test_only_the_head_is_drawn_anew() -> None:
    module = nets.plain(500)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    initialise_head(module, {"6.weight", "6.bias"})
    assert float(module[6].weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.05)
    assert not module[6].bias.any()
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items() if not name.startswith("6."))


def test_training_starts_from_nearly_uniform_predictions(shapes, tmp_path) -> None:
    train_here(shapes, tmp_path / "r", "--model", "timm/test_efficientnet", "--lr", 1e-9)
    assert column(tmp_path / "r", "loss")[0] == pytest.approx(math.log(3), abs=0.05)


def test_a_run_of_a_model_that_wants_a_version_in_its_state_goes_on(shapes, tmp_path) -> None:
    """torchvision's mnasnet refuses load_state_dict of what safetensors can store."""
    model = ["--model", "torchvision/mnasnet0_5"]
    train_here(shapes, tmp_path / "r", *model)
    train_here(shapes, tmp_path / "r", *model, "--extend", epochs=2)
    assert len(column(tmp_path / "r", "step")) == 8
