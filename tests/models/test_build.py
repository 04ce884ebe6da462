"""Any architecture gets a head of the requested size and returns one tensor."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec
from ddp_ft.models.introspection import WithoutValues, parameters_on_meta
from tests.support.marks import slowly

OUTPUTS = 7


def _lightest(module: str) -> str:
    def cost(name: str) -> tuple[bool, bool, int]:
        light = any(word in name for word in ("test", "atto", "nano", "tiny", "xxs", "_s"))
        heavy = any(word in name for word in ("base", "large", "huge", "giant", "1b", "3b"))
        return not light, heavy, len(name)

    return f"timm/{min(timm.list_models(module=module), key=cost)}"


TIMM = [_lightest(module) for module in timm.list_modules()]
TORCHVISION = [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
# Each stands for a kind of classifier: linear, convolution, two heads, several heads, normalised, attention pool.
REPRESENTATIVE = [
    "timm/deit_tiny_distilled_patch16_224", "timm/levit_128s", "timm/inception_v3", "torchvision/regnet_y_400mf",
    "torchvision/squeezenet1_1", "torchvision/vit_b_32",
    *slowly(
        "timm/resnet10t", "timm/mobilenetv3_small_050", "timm/crossvit_9_240", "timm/volo_d1_224",
        "timm/efficientformer_l1", "timm/nfnet_f0", "timm/coat_lite_tiny", "torchvision/densenet121",
        "torchvision/maxvit_t",
    ),
]  # fmt: skip


def check_head(built: BuiltModel) -> None:
    parameters = dict(built.module.named_parameters())
    assert built.head
    for name in built.head:
        assert OUTPUTS in parameters[name].shape, name
    assert len(built.head) < len(parameters)


def check_forward(built: BuiltModel, device: str, size: tuple[int, int] | None = None) -> None:
    images = torch.zeros(2, 3, *(size or built.processor.preprocess.size), device=device)
    for training in (True, False):
        with torch.no_grad():
            outputs = built.module.train(training)(images)
        assert isinstance(outputs, torch.Tensor) and outputs.shape == (2, OUTPUTS), training


def build_on_meta(name: str, head: HeadConfig | None = None) -> BuiltModel:
    # Large models for real would take too much time and memory; some (regnet) compute their widths with tensors.
    try:
        with torch.device("meta"), WithoutValues():
            return build_model(name, OUTPUTS, head=head)
    except (RuntimeError, NotImplementedError):
        with parameters_on_meta():
            built = build_model(name, OUTPUTS, head=head)
        built.module.to("meta")
        return built


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_representative_architecture(name: str) -> None:
    built = build_on_meta(name)
    check_head(built)
    check_forward(built, "meta")


@pytest.mark.parametrize(
    "name",
    [
        "timm/mobilenetv2_035", "timm/deit_tiny_distilled_patch16_224", "torchvision/squeezenet1_0",
        "torchvision/googlenet",
        *slowly(
            "timm/resnet10t", "timm/tf_efficientnet_lite0", "timm/vit_tiny_patch16_224", "timm/swin_s3_tiny_224",
            "timm/convnext_atto", "torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/inception_v3",
        ),
    ],
)  # fmt: skip
def test_real_forward_in_training_and_evaluation(name: str) -> None:
    built = build_model(name, OUTPUTS)
    check_head(built)
    check_forward(built, "cpu")


def test_distilled_model_trains_both_heads() -> None:
    head = build_model("timm/deit_tiny_distilled_patch16_224", OUTPUTS).head
    assert head == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_head_of_one_output_is_found() -> None:
    assert build_model("torchvision/resnet18", 1).head == {"fc.weight", "fc.bias"}


def test_inception_has_its_own_size_and_no_auxiliary_heads() -> None:
    built = build_model("torchvision/inception_v3", OUTPUTS)
    assert built.processor.preprocess.size == (299, 299)
    assert built.head == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/googlenet"])
def test_weights_are_those_of_the_plain_library_at_the_same_seed(name: str) -> None:
    # So the search for the head neither draws random numbers nor leaves a mark on the model.
    torch.manual_seed(3)
    built = build_model(name, OUTPUTS)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    plain = create_from_spec(json.loads(json.dumps(built.spec))).state_dict()
    assert torch.equal(torch.rand(1), drawn)
    state = built.module.state_dict()
    assert state.keys() == plain.keys() and all(torch.equal(state[key], plain[key]) for key in state)


LINEAR = """def make(num_classes: int, img_size: int = 32) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, num_classes))"""


def test_own_factory(factory_file: Callable[[str], str]) -> None:
    name = factory_file(LINEAR)
    built = build_model(name, OUTPUTS, image_size=48)
    assert built.head == {"3.weight", "3.bias"}
    assert built.processor.preprocess.size == (48, 48) and built.processor.preprocess.mean == (0.485, 0.456, 0.406)
    code = hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest()
    arguments = {"num_classes": 7, "img_size": 48}
    assert built.spec == {"library": "file", "name": name, "arguments": arguments, "code": code}
    check_forward(built, "cpu")
    assert isinstance(create_from_spec(built.spec), nn.Sequential)


def test_own_factory_may_say_its_preprocessing(factory_file: Callable[[str], str]) -> None:
    body = """def make(num_classes):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    module.default_cfg = {"input_size": (3, 40, 60), "mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    return module"""
    preprocess = build_model(factory_file(body), OUTPUTS).processor.preprocess
    assert preprocess.size == (40, 60) and preprocess.mean == (0.1, 0.2, 0.3) and preprocess.crop_pct == 1.0


def test_own_factory_with_one_mean_for_all_channels(factory_file: Callable[[str], str]) -> None:
    """Images have three all the same."""
    body = """def make(num_classes):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    module.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,), "std": (0.5,)}
    return module"""
    built = build_model(factory_file(body), OUTPUTS, image_size=48)
    assert built.processor.preprocess.mean == (0.5,) and built.head_path == "2"


def test_own_factory_that_needs_real_tensors(factory_file: Callable[[str], str]) -> None:
    body = """def make(num_classes):
    width = int(torch.ones(3).sum().item())
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))"""
    torch.manual_seed(0)
    built = build_model(factory_file(body), OUTPUTS)
    after = torch.rand(1)
    assert built.head == {"2.weight", "2.bias"}
    torch.manual_seed(0)
    nn.Linear(3, OUTPUTS)
    assert torch.equal(torch.rand(1), after), "the search for the head drew random numbers"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def other(num_classes):\n    return nn.Linear(3, num_classes)", "has no 'make'"),
        ("def make(classes):\n    return nn.Linear(3, classes)", "failed: TypeError"),
        ("def make(num_classes):\n    raise ValueError('broken wing')", "failed: ValueError: broken wing"),
        ("def make(num_classes):\n    return 'model'", "returned a str"),
        ("def make(num_classes):\n    return nn.Linear(3, 7)", "does not follow num_classes"),
        ("make = 3", "failed: TypeError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_own_factory_that_fails_is_explained(factory_file: Callable[[str], str], body: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(factory_file(body), OUTPUTS)
    assert said in caught.value.message and "\n" not in caught.value.message
