"""`ddp_ft.load`: the numbers of `predict`, in Python."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ddp_ft
from ddp_ft.errors import UserError
from tests.support.images import SHAPES
from tests.support.trained import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m", 1)


@pytest.fixture(scope="module")
def model(folder):
    return ddp_ft.load(folder, device="cpu")


def test_the_package_imports_no_torch():
    script = "import ddp_ft, sys; print('torch' in sys.modules, 'load' in ddp_ft.__all__)"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="lode"):
        ddp_ft.lode  # noqa: B018


def test_the_numbers_are_those_of_predict(model, folder, shapes, tmp_path):
    from ddp_ft.predict import predict

    predict.main([str(folder), str(shapes), "--output", str(tmp_path / "p.jsonl")], standalone_mode=False)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    found = model([row["file"] for row in rows])
    assert len(found) == 42
    for row, prediction in zip(rows, found, strict=True):
        assert prediction.probabilities == pytest.approx(row["probabilities"], abs=1e-6)
        assert (prediction.label, prediction.labels) == (row["class"], (row["class"],))
        assert prediction.probability == pytest.approx(row["probability"], abs=1e-6)


def test_all_kinds_of_images_are_the_same_image(model, shapes):
    file = shapes / "val/disc/10.png"
    image = Image.open(file)
    pixels = np.asarray(image)
    [wanted] = model([file])
    kinds = [str(file), image, pixels, pixels[:, ::-1][:, ::-1], torch.tensor(pixels), image.convert("RGBA")]
    assert all(model(each) == wanted for each in kinds)
    assert [each.label for each in model((file, pixels))] == [wanted.label, wanted.label]
    assert model([]) == []


def test_its_parts_work_alone(model, shapes):
    file = shapes / "val/disc/10.png"
    image = model.preprocess(file)
    assert image.shape == (3, 24, 24) and image.dtype == torch.float32
    with torch.no_grad():
        shares = model.module(image[None])[0].softmax(0)
    assert model(file).probabilities == pytest.approx(dict(zip(SHAPES, shares.tolist(), strict=True)), abs=1e-6)
    assert (model.classes, model.task) == (SHAPES, "single-label")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4)), "Pixels of float64, 4 x 4"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), "Pixels of uint8, 3 x 4 x 5"),
        (np.zeros((0, 4, 3), np.uint8), "0 x 4 x 3"),
        (7, "A int is no image"),
        ("nowhere.png", "nowhere.png: No such file"),
    ],
)
def test_what_is_no_image(model, given, message):
    with pytest.raises(UserError, match=message):
        model(given)


def test_labels_numbers_and_views(shapes, tmp_path):
    file = shapes / "val/disc/10.png"
    labels = ddp_ft.load(write_model(tmp_path / "labels", 1, task="multi-label"), "cpu")(file)
    assert labels.label is None and set(labels.labels) == {n for n, p in labels.probabilities.items() if p >= 0.5}
    standard = {"mean": [10.0, -1.0], "std": [2.0, 0.5]}
    names = ("age", "weight")
    numbers = ddp_ft.load(write_model(tmp_path / "n", 1, task="regression", names=names, settings=standard), "cpu")
    with torch.no_grad():
        outputs = numbers.module(numbers.preprocess(file)[None])[0]
    assert numbers(file).values == pytest.approx(
        {"age": float(10 + 2 * outputs[0]), "weight": float(-1 + outputs[1] / 2)}
    )
    mirrored = ddp_ft.load(write_model(tmp_path / "m", 1), "cpu", tta="flip")
    images = mirrored.preprocess(file)[None]
    with torch.no_grad():
        shares = [mirrored.module(each).softmax(1)[0] for each in (images, images.flip(-1))]
    assert list(mirrored(file).probabilities.values()) == pytest.approx(
        ((shares[0] + shares[1]) / 2).tolist(), abs=1e-6
    )
