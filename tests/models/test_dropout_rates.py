"""Dropout before the head and stochastic depth."""

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec
from ddp_ft.models.backbone import features, head_module
from ddp_ft.models.build import Variant, depth_rates
from tests.models.test_build import TIMM, TORCHVISION, build_on_meta
from tests.support import nets

OUTPUTS = 5
PLAIN, WITH_DROPOUT = f"{nets.THIS_FILE}:plain", f"{nets.THIS_FILE}:with_batch_norm"


def _dropped(module: nn.Module, layer: str) -> float:
    """The share of zeros in what `layer` multiplies, in training mode; the images have none."""
    seen: list[torch.Tensor] = []
    part = module.get_submodule(layer)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return forward(x)

    forward, part.forward = part.forward, multiply
    torch.manual_seed(2)
    with torch.no_grad():
        module.train()(torch.rand(16, 3, 64, 64) + 0.5)
    del part.forward
    return float((seen[0] == 0).float().mean())


# Networks whose features are hardly ever 0, unlike those of a ReLU.
@pytest.mark.parametrize(
    ("name", "layer"),
    [("timm/test_vit", "head"), ("timm/test_convnext", "head.fc"), ("timm/test_efficientnet_gn", "classifier")],
)
def test_dropout_by_the_librarys_argument(name: str, layer: str) -> None:
    assert _dropped(build_model(name, OUTPUTS, 64).module, layer) < 0.01
    built = build_model(name, OUTPUTS, 64, head=HeadConfig(dropout=0.4))
    assert built.spec["arguments"]["drop_rate"] == 0.4 and "head" not in built.spec
    assert _dropped(built.module, layer) == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("rate", [0.0, 0.35])
def test_dropout_of_torchvision_by_its_argument(rate: float) -> None:
    with torch.device("meta"):
        built = build_model("torchvision/mobilenet_v2", OUTPUTS, head=HeadConfig(dropout=rate))
    assert built.spec["arguments"]["dropout"] == rate and "head" not in built.spec
    assert built.module.classifier[0].p == rate


def _check_linear(built: BuiltModel, plain: nn.Module, layer: str, rate: float) -> None:
    assert built.spec["head"]["dropout"] == rate and built.spec["head"]["name"] == "linear"
    assert built.module.state_dict().keys() == plain.state_dict().keys(), "the library itself must load these weights"
    again = create_from_spec(json.loads(json.dumps(built.spec)))
    for module in (built.module, again, copy.deepcopy(built.module), pickle.loads(pickle.dumps(built.module))):
        assert _dropped(module, layer) == pytest.approx(rate, abs=0.06)
    plain.load_state_dict(built.module.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(plain.eval()(images), built.module.eval()(images))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_that_stands_before_the_head_is_set(rate: float) -> None:
    built = build_model(WITH_DROPOUT, OUTPUTS, head=HeadConfig(dropout=rate))
    assert built.spec["head"]["dropout_at"] == "8" and built.module[8].p == rate
    for each in (built.module, create_from_spec(built.spec)):
        assert [part.p for part in each.modules() if isinstance(part, nn.Dropout)] == [rate]
    assert built.module.state_dict().keys() == nets.with_batch_norm(OUTPUTS).state_dict().keys()


def test_dropout_where_there_was_none() -> None:
    built = build_model(PLAIN, OUTPUTS, head=HeadConfig(dropout=0.4))
    _check_linear(built, nets.plain(OUTPUTS), "6", 0.4)


def test_dropout_where_torchvision_has_none() -> None:
    built = build_model("torchvision/resnet18", OUTPUTS, head=HeadConfig(dropout=0.4))
    assert built.spec["arguments"] == {"num_classes": OUTPUTS} and built.head == {"fc.weight", "fc.bias"}
    _check_linear(built, torchvision.models.resnet18(num_classes=OUTPUTS), "fc", 0.4)


def test_dropout_of_torchvisions_encoders_stays() -> None:
    # Its vision transformer has an argument `dropout` too, for all layers but the head.
    with torch.device("meta"):
        built = build_model("torchvision/vit_b_32", OUTPUTS, head=HeadConfig(dropout=0.4))
    assert "dropout" not in built.spec["arguments"] and built.spec["head"]["dropout_at"] == "heads.head"
    assert not any(part.p for part in built.module.modules() if isinstance(part, nn.Dropout))


def test_dropout_that_is_added_belongs_to_the_head() -> None:
    built = build_model(PLAIN, OUTPUTS, head=HeadConfig(dropout=0.4))
    batch = {"image": torch.rand(4, 3, 16, 16)}
    head, found = head_module(built.module, "6"), features(built.module.train(), "6", built.call, batch)
    assert torch.equal(found, features(built.module.eval(), "6", built.call, batch)), "features do not drop anything"
    assert not torch.equal(head.train()(found), head.eval()(found))


@pytest.mark.parametrize("dropout", [None, 0.3])
def test_dropout_of_an_mlp_takes_the_place_of_the_models_own(dropout: float | None) -> None:
    built = build_model(WITH_DROPOUT, OUTPUTS, head=HeadConfig("mlp:8", dropout))
    rates = [part.p for part in built.module.modules() if isinstance(part, nn.Dropout)]
    assert rates == ([0.2] if dropout is None else [0.0, 0.3, 0.3])
    again = create_from_spec(json.loads(json.dumps(built.spec)))
    assert [part.p for part in again.modules() if isinstance(part, nn.Dropout)] == rates


def test_dropout_before_a_head_of_the_users_own(tmp_path) -> None:
    (tmp_path / "head.py").write_text("from torch.nn import Linear as Head\n")
    built = build_model(PLAIN, OUTPUTS, head=HeadConfig(f"{tmp_path / 'head.py'}:Head", 0.4))
    assert _dropped(built.module, "6.own") == pytest.approx(0.4, abs=0.1)


def test_dropout_of_a_network_that_goes_on_behind_its_head() -> None:
    with torch.device("meta"):
        built = build_model("torchvision/squeezenet1_1", OUTPUTS, head=HeadConfig(dropout=0.25))
    assert built.module.classifier[0].p == 0.25 == built.spec["arguments"]["dropout"]


@pytest.mark.slow
def test_dropout_before_several_heads() -> None:
    with torch.device("meta"):
        built = build_model("timm/crossvit_9_240", OUTPUTS, head=HeadConfig(dropout=0.25))
    assert built.spec["arguments"] == {"num_classes": OUTPUTS, "drop_rate": 0.25}


TWO_HEADS = """class make(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.one, self.two = nn.Linear(3, num_classes), nn.Linear(3, num_classes)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.one(x) + self.two(x)"""
FIXED = """class make(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x.mean((2, 3)), 0.3, self.training))"""
TAKES = """def make(num_classes, dropout=0.3, stochastic_depth_prob=0.1):
    return nn.Sequential(nn.Flatten(), nn.Dropout(stochastic_depth_prob), nn.ReLU(), nn.Dropout(dropout),
                         nn.Linear(192, num_classes))"""


@pytest.mark.parametrize(
    ("body", "said"), [(TWO_HEADS, "cannot have head.dropout = 0.4"), (FIXED, r"of its own .*0\.3")]
)
def test_dropout_that_cannot_be_set(factory_file: Callable[[str], str], body: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_model(factory_file(body), OUTPUTS, head=HeadConfig(dropout=0.4))


def test_rates_by_arguments_of_the_users_own_function(factory_file: Callable[[str], str]) -> None:
    built = build_model(factory_file(TAKES), OUTPUTS, 8, head=HeadConfig(dropout=0.4), variant=Variant(0.2))
    assert built.spec["arguments"] == {"num_classes": OUTPUTS, "dropout": 0.4, "stochastic_depth_prob": 0.2}
    assert (built.module[1].p, built.module[3].p) == (0.2, 0.4)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"])
def test_stochastic_depth_of_timm(name: str) -> None:
    built = build_model(name, OUTPUTS, variant=Variant(0.3))
    assert built.spec["arguments"]["drop_path_rate"] == 0.3
    rates = depth_rates(built.module)
    expected = depth_rates(timm.create_model(name[5:], num_classes=OUTPUTS, drop_path_rate=0.3))
    assert rates == expected and max(rates) > 0.15 and rates == sorted(rates)
    assert depth_rates(create_from_spec(built.spec)) == rates
    assert not any(depth_rates(build_model(name, OUTPUTS).module))


@pytest.mark.parametrize(
    ("name", "own", "drop_path"), [("torchvision/convnext_tiny", 0.1, 0.4), ("torchvision/convnext_tiny", 0.1, 0.0)]
)
def test_stochastic_depth_of_torchvision(name: str, own: float, drop_path: float) -> None:
    with torch.device("meta"):
        assert max(depth_rates(build_model(name, OUTPUTS).module)) == own
        built = build_model(name, OUTPUTS, variant=Variant(drop_path))
    assert max(depth_rates(built.module)) == drop_path == built.spec["arguments"]["stochastic_depth_prob"]


def test_stochastic_depth_at_work() -> None:
    torch.manual_seed(0)
    module = build_model("timm/test_vit", OUTPUTS, 32, variant=Variant(0.9)).module
    initial, images = module.state_dict(), torch.rand(1, 3, 32, 32)
    nn.init.normal_(initial["head.weight"])
    assert not torch.equal(module.train()(images), module(images))
    assert torch.equal(module.eval()(images), module(images))


@pytest.mark.parametrize(
    "name",
    ["timm/vgg11", "torchvision/resnet18", "torchvision/swin_t", "torchvision/mobilenet_v3_small", PLAIN],
)  # fmt: skip
def test_stochastic_depth_of_a_model_that_takes_none(name: str) -> None:
    with pytest.raises(UserError, match="stochastic depth cannot be set"), torch.device("meta"):
        build_model(name, OUTPUTS, variant=Variant(0.2))


def test_no_stochastic_depth_suits_a_model_that_has_none() -> None:
    with torch.device("meta"):
        assert "drop_path" not in build_model("torchvision/resnet18", OUTPUTS, variant=Variant(0.0)).spec["arguments"]
        with pytest.raises(UserError, match="torchvision/swin_t takes no stochastic_depth_prob"):
            build_model("torchvision/swin_t", OUTPUTS, variant=Variant(0.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_every_architecture_takes_a_dropout_before_its_head(name: str) -> None:
    """By an argument, or by the dropout that is there or a new one, which model.json then stores."""
    built = build_on_meta(name, HeadConfig(dropout=0.37))
    assert (0.37 in built.spec["arguments"].values()) != ("head" in built.spec)
