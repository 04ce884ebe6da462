"""Which model a name means, and the message if it means none."""

import subprocess
import sys

import pytest

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec, model_names
from ddp_ft.models.libraries.registry import resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet18", ("timm", "resnet18")),
        ("timm/resnet18.a1_in1k", ("timm", "resnet18.a1_in1k")),
        ("torchvision/resnet18", ("torchvision", "resnet18")),
        ("torchvision/resnet50.IMAGENET1K_V2", ("torchvision", "resnet50.IMAGENET1K_V2")),
        ("vit_tiny_patch16_224", ("timm", "vit_tiny_patch16_224")),
        ("squeezenet1_0", ("torchvision", "squeezenet1_0")),
        # Both have a resnet18, but only one of them these weights.
        ("resnet18.a1_in1k", ("timm", "resnet18.a1_in1k")),
        ("resnet18.IMAGENET1K_V1", ("torchvision", "resnet18.IMAGENET1K_V1")),
        ("models/own.py:make", ("file", "models/own.py:make")),
        ("timm/convnext_tiny_in22ft1k", ("timm", "convnext_tiny_in22ft1k")),  # deprecated, still known
    ],
)
def test_name_means(name: str, expected: tuple[str, str]) -> None:
    assert resolve(name) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", ["timm/resnet18", "torchvision/resnet18"]),
        ("resnt18", ["Unknown model 'resnt18'", "timm/resnet18", "torchvision/resnet18"]),
        ("timm/squeezenet1_0", ["Unknown", "torchvision/squeezenet1_0"]),
        ("vit_tiny", ["timm/vit_tiny_patch16_224"]),
        ("timm/resnet18.a1_in22k", ["timm/resnet18.a1_in1k"]),
        ("torchvision/resnet18.V1", ["torchvision/resnet18.IMAGENET1K_V1"]),
        ("tim/resnet18", ["Unknown model library 'tim'", "Did you mean timm?"]),
        ("own.py", ["--model own.py", "FILE.py:FACTORY"]),
        ("nowhere.py:make", ["No such file: nowhere.py"]),
        ("", ["Expected timm/NAME"]),
    ],
)
def test_unclear_name_is_explained(name: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, 3)
    assert [part for part in said if part not in str(caught.value)] == []


def test_known_names_are_those_that_resolve() -> None:
    names = model_names()
    assert len(names) > 2000
    for name in names[:: len(names) // 20]:
        assert resolve(name) == tuple(name.split("/"))


def test_deprecated_name_builds_its_successor() -> None:
    spec = build_model("timm/convnext_tiny_in22ft1k", 3).spec
    assert spec["name"] == "convnext_tiny.fb_in22k_ft_in1k"


def test_spec_names_the_tag_that_was_meant() -> None:
    assert build_model("timm/resnet18", 3).spec == {
        "library": "timm",
        "name": "resnet18.a1_in1k",
        "arguments": {"num_classes": 3},
    }


def test_torchvision_tag_decides_the_preprocessing() -> None:
    first = build_model("torchvision/mobilenet_v2.IMAGENET1K_V1", 3).processor.preprocess
    second = build_model("torchvision/mobilenet_v2.IMAGENET1K_V2", 3).processor.preprocess
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert first == Preprocess((224, 224), mean, std, "bilinear", 224 / 256)
    assert second == Preprocess((224, 224), mean, std, "bilinear", 224 / 232)
    assert build_model("torchvision/mobilenet_v2", 3).processor.preprocess == second  # its DEFAULT


def test_torchvision_file_name_decides_the_preprocessing() -> None:
    built = build_model("torchvision/mobilenet_v2", 3, weights="/else/where/mobilenet_v2-b0353104.pth")
    assert built.processor.preprocess.crop_pct == 224 / 256


def test_timm_preprocessing_is_its_own() -> None:
    half = (0.5, 0.5, 0.5)
    expected = Preprocess((224, 224), half, half, "bicubic", 0.875)
    assert build_model("timm/tf_efficientnet_lite0", 3).processor.preprocess == expected
    assert build_model("timm/tf_efficientnet_lite0", 3, 128).processor.preprocess.size == (128, 128)


def test_what_a_new_process_imports() -> None:
    """A torchvision model without timm, timm without wandb; and garbage is looked for again afterwards."""
    code = """
import gc, sys
from ddp_ft.cli.options import importing
with importing():
    assert not gc.isenabled()
    from ddp_ft.models import build_model
build_model("torchvision/resnet18", 3)
assert "timm" not in sys.modules and gc.isenabled() and gc.get_freeze_count() > 1000
frozen = gc.get_freeze_count()
with importing():
    from ddp_ft.models.libraries.bare_timm import timm
assert "wandb" not in sys.modules and not hasattr(timm.utils.summary, "wandb")
assert gc.get_freeze_count() <= frozen, "torch was there already"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"library": "keras", "name": "resnet18", "arguments": {}}, "Unknown model library 'keras'"),
        ({"library": "timm", "name": "resnet18_new", "arguments": {}}, "no model 'resnet18_new'"),
        ({"library": "timm", "name": "resnet18.new", "arguments": {}}, "no model 'resnet18.new'"),
        ({"library": "torchvision", "name": "no", "arguments": {}}, "no model 'no'"),
        ({"library": "timm", "name": "resnet18", "arguments": {"wings": 2}}, "wings"),
        ({"library": "timm", "name": "resnet18"}, "arguments"),
    ],
)
def test_spec_that_cannot_be_built_is_explained(spec: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        create_from_spec(spec)
