"""Heads other than the library's own: an mlp, and a class of the user's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec, load_weights
from ddp_ft.models.head import HEAD_STD, initialise_head
from tests.support import nets

OUTPUTS = 5
OWN = f"{nets.THIS_FILE}:plain"
# Name, and how many features go into its head.
MODELS = {
    "timm/test_resnet": 96, "timm/test_efficientnet": 256, "timm/test_vit": 64, "timm/test_convnext": 64,
    "timm/resnetv2_18": 512, "torchvision/mobilenet_v2": 1280, "torchvision/resnet18": 512, OWN: 16,
}  # fmt: skip


def _head(built: BuiltModel) -> nn.Module:
    assert built.head_path is not None
    return built.module.get_submodule(built.head_path)


def _layers(built: BuiltModel) -> list[tuple[str, str]]:
    return [(name, type(part).__name__) for name, part in _head(built).named_children()]


@pytest.mark.parametrize("name", MODELS)
def test_mlp_on_any_kind_of_network(name: str) -> None:
    built = build_model(name, OUTPUTS, 64, head=HeadConfig(name="mlp:12,7"))
    assert [tuple(part.weight.shape) for part in _head(built).children() if isinstance(part, nn.Linear)] == [
        (12, MODELS[name]), (7, 12), (OUTPUTS, 7),
    ]  # fmt: skip
    assert built.head == {f"{built.head_path}.linear{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}
    images = torch.rand(3, 3, 64, 64)
    outputs = built.module(images)
    assert outputs.shape == (3, OUTPUTS)
    outputs.sum().backward()
    assert all(part.grad is not None for part in built.module.parameters())
    again = create_from_spec(json.loads(json.dumps(built.spec)))
    again.load_state_dict(built.module.state_dict())
    assert torch.equal(again.eval()(images), built.module.eval()(images))


@pytest.mark.slow
def test_mlp_on_torchvisions_vision_transformer() -> None:
    built = build_model("torchvision/vit_b_32", OUTPUTS, 64, head=HeadConfig(name="mlp:12"))
    assert built.head_path == "heads.head" and built.module(torch.rand(2, 3, 64, 64)).shape == (2, OUTPUTS)


def test_layers_of_an_mlp_in_their_order() -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8", 0.25, "relu", "batch"))
    assert _layers(built) == [
        ("dropout1", "Dropout"), ("linear1", "Linear"), ("norm1", "BatchNorm1d"), ("activation1", "ReLU"),
        ("dropout2", "Dropout"), ("linear2", "Linear"),
    ]  # fmt: skip
    assert [part.p for part in _head(built).children() if isinstance(part, nn.Dropout)] == [0.25, 0.25]
    plain = build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8"))
    assert _layers(plain) == [("linear1", "Linear"), ("activation1", "GELU"), ("linear2", "Linear")]


@pytest.mark.parametrize(
    ("activation", "expected"), [("gelu", nn.GELU), ("relu", nn.ReLU), ("silu", nn.SiLU), ("tanh", nn.Tanh)]
)
def test_activation_of_an_mlp(activation: str, expected: type[nn.Module]) -> None:
    head = _head(build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8", activation=activation)))
    assert isinstance(head.get_submodule("activation1"), expected)


@pytest.mark.parametrize(("norm", "expected"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_norm_of_an_mlp(norm: str, expected: type[nn.Module]) -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8,4", norm=norm))
    norms = [part for part in _head(built).children() if isinstance(part, expected)]
    assert [part.weight.shape for part in norms] == [(8,), (4,)]
    assert {"6.norm1.weight", "6.norm2.bias"} <= built.head


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlp", "65536"), ("mlp:", "65536"), ("mlp:0", "65536"), ("mlp:64,-1", "65536"),
        ("mlp:64,", "65536"), ("mlp:big", "65536"), ("mlp:1.5", "65536"), ("liner", "linear"),
        ("mpl:64", "Did you mean mlp?"), ("mlp:99999999999", "65536"), ("linear:mlp", "Unknown head"),
        ("no_such.module:Head", "no_such"),
        ("head.py", "head.py:CLASS"), ("", "Expected linear"), ("none.py:Head", "none.py"),
    ],
)  # fmt: skip
def test_head_that_cannot_be_understood(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(OWN, OUTPUTS, head=HeadConfig(name))
    assert said in str(caught.value) and "\n" not in caught.value.message


@pytest.mark.parametrize("head", [HeadConfig("mlp:8"), HeadConfig("some.py:Head"), HeadConfig(bias="prior")])
@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/deit_tiny_distilled_patch16_224"])
def test_network_that_does_not_end_with_its_head_keeps_it(name: str, head: HeadConfig) -> None:
    with pytest.raises(UserError, match="does not end with one module"), torch.device("meta"):
        build_model(name, OUTPUTS, head=head)


COSINE = """class Head(nn.Module):
    def __init__(self, in_features, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.full((outputs, in_features), 0.5))
        self.last = nn.Linear(outputs, outputs)

    def forward(self, x):
        assert x.ndim == 2
        return self.last(x @ self.weight.t())"""


@pytest.fixture
def head_file(tmp_path: Path) -> Callable[[str], str]:
    def write(body: str) -> str:
        (tmp_path / "head.py").write_text(f"import torch\nfrom torch import nn\n\n\n{body}\n")
        return f"{tmp_path / 'head.py'}:Head"

    return write


@pytest.mark.parametrize("name", [OWN, "timm/test_resnet", "timm/resnetv2_18"])
def test_head_of_the_users_own(name: str, head_file: Callable[[str], str]) -> None:
    reference = head_file(COSINE)
    built = build_model(name, OUTPUTS, 64, head=HeadConfig(reference))
    path = built.head_path
    assert built.head == {f"{path}.own.weight", f"{path}.own.last.weight", f"{path}.own.last.bias"}
    assert _head(built).get_submodule("own").weight.shape == (OUTPUTS, MODELS[name])
    assert _head(built).training and built.spec["head"]["name"] == reference
    images = torch.rand(2, 3, 64, 64)
    again = create_from_spec(json.loads(json.dumps(built.spec)))
    again.load_state_dict(built.module.state_dict())
    assert torch.equal(again.eval()(images), built.module.eval()(images))


def test_head_of_the_users_own_keeps_how_it_begins(head_file: Callable[[str], str]) -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig(head_file(COSINE)))
    before = {name: tensor.clone() for name, tensor in built.module.state_dict().items()}
    initialise_head(built.module, built.head)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.module.state_dict().items())
    initialise_head(built.module, built.head, torch.arange(5.0))
    assert torch.equal(_head(built).own.last.bias, torch.arange(5.0))
    assert torch.equal(_head(built).own.weight, before["6.own.weight"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("Head = 3", "is not a class"),
        ("def Head(a, b):\n    return nn.Linear(a, b)", "is not a class"),
        ("class Head:\n    def __init__(self, a, b): pass", "is not a class"),
        ("class Head(nn.Module):\n    def __init__(self, a): super().__init__()", "failed: TypeError"),
        ("class Head(nn.Identity): pass", "no parameters"),
        ("class Head(nn.Linear):\n    def forward(self, x): return super().forward(x)[:, :2]", "returned 2 x 2;"),
        ("class Head(nn.Linear):\n    def forward(self, x): return [x]", "returned list;"),
        ("class Head(nn.Linear):\n    def forward(self, x): return x @ x", "failed from 2 x 16 to 2 x 5"),
        ("class Other(nn.Linear): pass", "has no 'Head'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_head_of_the_users_own_that_fails_is_explained(head_file: Callable[[str], str], body: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(OWN, OUTPUTS, head=HeadConfig(head_file(body)))
    assert said in caught.value.message and "\n" not in caught.value.message


def test_file_of_the_head_that_is_gone(head_file: Callable[[str], str], tmp_path: Path) -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig(head_file(COSINE)))
    (tmp_path / "head.py").unlink()
    with pytest.raises(UserError, match="No such file"):
        create_from_spec(built.spec)


@pytest.mark.parametrize("change", [{"path": "7.fc"}, {"width": 3}])
def test_head_in_model_json_that_does_not_fit(change: dict[str, object]) -> None:
    spec = dict(build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8")).spec)
    with pytest.raises(UserError, match=r"model\.json"):
        create_from_spec({**spec, "head": {**spec["head"], **change}})


def test_linear_head_of_the_library_is_not_described() -> None:
    with torch.device("meta"):
        assert "head" not in build_model("timm/test_resnet", OUTPUTS, head=HeadConfig()).spec


def test_how_an_mlp_begins() -> None:
    built = build_model(OWN, 40, head=HeadConfig("mlp:900,500", norm="layer"))
    body = {name: t.clone() for name, t in built.module.state_dict().items() if not name.startswith("6.")}
    head = _head(built)
    for each in head.parameters():
        nn.init.constant_(each, 1.0)
    initialise_head(built.module, built.head)
    assert float(head.linear1.weight.detach().std()) == pytest.approx((2 / 16) ** 0.5, rel=0.05)
    assert float(head.linear2.weight.detach().std()) == pytest.approx((2 / 900) ** 0.5, rel=0.05)
    assert float(head.linear3.weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.05)
    assert not any(layer.bias.any() for layer in (head.linear1, head.linear2, head.linear3))
    assert bool((head.norm1.weight == 1).all()), "a norm that starts at 0 lets nothing through"
    assert all(torch.equal(tensor, built.module.state_dict()[name]) for name, tensor in body.items())


@pytest.mark.parametrize("head", ["linear", "mlp:5", "mlp:8"])
@pytest.mark.parametrize("name", [OWN, "timm/resnetv2_18"])
def test_last_bias_begins_as_asked(head: str, name: str) -> None:
    built = build_model(name, OUTPUTS, head=HeadConfig(head, norm="layer", bias="prior"))
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log()
    initialise_head(built.module, built.head, prior)
    biases = [part for part in _head(built).modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert torch.equal(biases[-1].bias, prior) and not any(part.bias.any() for part in biases[:-1])
    images = torch.zeros(2, 3, 64, 64)
    shares = built.module.eval()(images).softmax(1)
    assert torch.allclose(shares, prior.exp().expand(2, -1), atol=0.05)


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        ("class Head(nn.Linear):\n    def __init__(self, a, b): super().__init__(a, b, bias=False)", torch.zeros(5)),
        (COSINE, torch.zeros(3)),
        (
            "class Head(nn.Sequential):\n    def __init__(self, a, b):\n"
            "        super().__init__(nn.Linear(a, b), nn.Linear(b, b, bias=False))",
            torch.zeros(5),
        ),
    ],
)
def test_bias_that_the_head_has_not(head_file: Callable[[str], str], body: str, bias: torch.Tensor) -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig(head_file(body)))
    with pytest.raises(UserError, match="has no bias"):
        initialise_head(built.module, built.head, bias)


def test_linear_head_without_bias(factory_file: Callable[[str], str]) -> None:
    body = "def make(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, num_classes, bias=False))"
    module = build_model(factory_file(body), OUTPUTS, 8).module
    with pytest.raises(UserError, match="has no bias"):
        initialise_head(module, {"1.weight"}, torch.zeros(OUTPUTS))


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Callable[[nn.Module], str]]:
    def save(module: nn.Module) -> str:
        state = {
            key: tensor + 0.5 if tensor.is_floating_point() else tensor for key, tensor in module.state_dict().items()
        }
        (tmp_path / "best").mkdir(exist_ok=True)
        save_file(state, tmp_path / "best" / "model.safetensors")
        return str(tmp_path)

    yield save


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_convnext", OWN])
def test_weights_of_a_linear_model_into_one_with_an_mlp(name: str, saved: Callable[[nn.Module], str]) -> None:
    run = saved(build_model(name, 40).module)
    built = build_model(name, OUTPUTS, head=HeadConfig("mlp:8", norm="batch"))
    report = load_weights(built, name, run)
    assert set(report.missing) == {key for key in built.module.state_dict() if key.startswith(f"{built.head_path}.")}
    assert set(report.unexpected) == {f"{built.head_path}.weight", f"{built.head_path}.bias"}
    assert len(report.loaded) + len(report.missing) == len(built.module.state_dict())


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_convnext", "timm/test_vit", OWN])
def test_weights_of_a_run_with_the_same_mlp(name: str, saved: Callable[[nn.Module], str]) -> None:
    head = HeadConfig("mlp:8,4", norm="batch")
    first = build_model(name, OUTPUTS, head=head).module
    built = build_model(name, OUTPUTS, head=HeadConfig("mlp:8,4", dropout=0.5, norm="batch"))
    report = load_weights(built, name, saved(first))
    assert (report.skipped, report.missing, report.unexpected) == ((), (), ())
    for key, tensor in built.module.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[key] + 0.5 * tensor.is_floating_point()), key


def test_weights_of_an_mlp_of_other_widths_are_skipped(saved: Callable[[nn.Module], str]) -> None:
    built = build_model(OWN, OUTPUTS, head=HeadConfig("mlp:8", norm="batch"))
    report = load_weights(built, OWN, saved(build_model(OWN, OUTPUTS, head=HeadConfig("mlp:6", norm="batch")).module))
    assert {"6.linear1.weight", "6.linear2.weight", "6.norm1.running_mean"} <= set(report.skipped)
    assert len([name for name in report.loaded if not name.startswith("6.")]) == 4
