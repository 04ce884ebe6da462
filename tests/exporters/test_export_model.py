"""`export`: other programs get what the model gives, or nothing is written."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.sources.files import FileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.errors import UserError
from ddp_ft.exporters.onnx import preprocessing_text
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.models import build_model
from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
from ddp_ft.tasks.registry import restore_task
from tests.support.images import SHAPES, draw_shape
from tests.support.trained import write_model, write_run

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """Never the same."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        outputs = self.head(images.mean((2, 3)))
        return outputs + torch.randn_like(outputs)


class Choosy(nn.Module):
    """Decides by the values of a tensor, in Python."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        means = images.mean((2, 3))
        return self.head(means if means.sum() > 0 else -means)


def export(*args):
    from ddp_ft.export import export as command

    return command.main([*map(str, args)], standalone_mode=False)


def write_library_model(folder, name, size, head=None, task="single-label"):
    torch.manual_seed(0)
    built = build_model(name, 3, size, "none", head)
    with torch.no_grad():
        for parameter in built.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made = restore_task(task, {"classes": list(SHAPES)})
    description = describe_model(built.spec, built.processor, made, SHAPES, "fp32")
    save_model_folder(folder, built.module.state_dict(), description)
    return folder


def write_own(folder, factory):
    preprocess = Preprocess((24, 24), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    spec = {"library": "file", "name": f"{__file__}:{factory.__name__}", "arguments": {"num_classes": 3}}
    made = restore_task("single-label", {"classes": list(SHAPES)})
    save_model_folder(folder, factory(3).state_dict(), describe_model(spec, preprocess, made, SHAPES, "fp32"))
    return folder


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "r", shapes, {1: 0.5})


@pytest.fixture(scope="module")
def prepared(run, shapes):
    """Images as the model takes them, and its outputs."""
    trained = load_trained(run, CPU)
    source, transform = FileSource(list_images([str(shapes / "val")])), eval_transform(trained.processor.preprocess)
    images = torch.stack([transform(source.read(k)["image"]) for k in range(len(source))]).float() / 255
    images = (images - torch.tensor(trained.processor.preprocess.mean).view(3, 1, 1)) / 0.25
    with torch.no_grad():
        return images, trained.module(images)


def test_onnx_gives_what_the_model_gives(run, prepared, tmp_path, capsys):
    assert export(run, "--format", "onnx", "--output", tmp_path / "m.onnx") == 0
    said = capsys.readouterr().out
    assert "12 images that the run is evaluated on" in said and "12 of 12 the same" in said
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    images, outputs = prepared
    for batch in (images, images[:1]):
        [found] = session.run(["outputs"], {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs[: len(batch)])
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told["classes"] == list(SHAPES) and told["preprocessing"]["size"] == [24, 24]
    text = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in text  # where the exporter found each operation
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_torch_export_gives_what_the_model_gives(run, prepared, tmp_path):
    assert export(run, "--format", "torch_export", "--output", tmp_path / "m.pt2") == 0
    extra = {"model.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    images, outputs = prepared
    for batch in (images, images[:1]):
        torch.testing.assert_close(program(batch), outputs[: len(batch)])
    assert json.loads(extra["model.json"])["classes"] == list(SHAPES)


PREPARATIONS = [
    Preprocess((24, 24), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 0.875),
    Preprocess((24, 24), (0.0, 0.5, 1.0), (1.0, 0.25, 0.3), "bilinear", 0.9),
    Preprocess((32, 20), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 0.8),
    Preprocess((32, 20), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "nearest", 0.8, "squash"),
]


@pytest.mark.parametrize("preprocess", PREPARATIONS, ids=lambda each: f"{each.interpolation}-{each.crop_mode}")
def test_preprocessing_inside_is_that_of_the_loader(preprocess):
    """Within one grey level, and that at few places: where half a level is rounded."""
    model = onnx.parser.parse_model(preprocessing_text(preprocess, opset=18, ir_version=8))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (preprocess.mean, preprocess.std))
    generator = np.random.default_rng(0)
    for size in ((48, 40), (40, 48), (24, 24), (301, 187), (33, 90), (20, 31)):
        image = draw_shape(1, size, generator)
        [[found]] = session.run(None, {"pictures": image[None]})
        wanted = eval_transform(preprocess)(torch.from_numpy(image).permute(2, 0, 1)).numpy()
        off = np.abs((found * std + mean) * 255 - wanted)
        assert off.max() < 1.01 and off.mean() < 0.1, size


def test_a_file_with_preprocessing_takes_images_and_predicts_as_the_run_does(run, shapes, tmp_path, capsys):
    file = tmp_path / "m.onnx"
    assert export(run, "--format", "onnx", "--with-preprocessing", "--output", file) == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    assert (given.name, given.type) == ("pictures", "tensor(uint8)")
    assert session.run(None, {"pictures": np.zeros((2, 50, 70, 3), np.uint8)})[0].shape == (2, 3)
    from ddp_ft.predict import predict

    for model, name in ((run, "a.jsonl"), (file, "b.jsonl")):
        arguments = [model, shapes / "val", "--output", tmp_path / name, "--device", "cpu"]
        predict.main([*map(str, arguments)], standalone_mode=False)
    one, two = (
        [json.loads(line)["probabilities"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    )
    assert two == [pytest.approx(each, abs=2e-6) for each in one]
    with pytest.raises(UserError, match="--tta flip does not work"):
        predict.main([*map(str, arguments), "--tta", "flip"], standalone_mode=False)


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_an_export_that_differs_is_removed(kind, tmp_path, capsys):
    model = write_own(tmp_path / "noisy", Noisy)
    output = tmp_path / ("m.onnx" if kind == "onnx" else "m.pt2")
    assert export(model, "--format", kind, "--output", output, "--check", 5) == 1
    told = capsys.readouterr()
    assert "compared on  5 images of noise" in told.out and "it was removed" in told.err
    assert [each.name for each in tmp_path.iterdir()] == ["noisy"]


def test_a_model_that_cannot_be_followed(tmp_path):
    model = write_own(tmp_path / "choosy", Choosy)
    with pytest.raises(UserError, match="cannot be exported as torch_export") as caught:
        export(model, "--format", "torch_export", "--output", tmp_path / "m.pt2")
    assert "--format safetensors" in caught.value.hint
    assert [each.name for each in tmp_path.iterdir()] == ["choosy"]
    assert export(model, "--format", "safetensors", "--output", tmp_path / "folder") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx", "--output", "m.pt2"], "ends in .onnx"),
        (["--format", "safetensors", "--output", "m.onnx"], "the name of a folder"),
        (["--format", "safetensors", "--output", "taken.safetensors"], "taken.json is there"),
        (["--format", "torch_export", "--output", "no/m.pt2"], "there is no folder"),
        (["--format", "safetensors", "--output", "other"], "other things in it"),
        (["--format", "torch_export", "--output", "m.pt2", "--with-preprocessing"], "is for --format onnx"),
        (["--format", "safetensors", "--output", "m", "--check-images", "nowhere"], "nowhere"),
    ],
)
def test_wishes_that_cannot_be(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    (tmp_path / "taken.json").touch()
    with pytest.raises(UserError) as caught:
        export(run, *options)
    assert message in str(caught.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "taken.json"]


def test_weights_as_a_file(run, tmp_path, capsys):
    for _ in range(2):  # the second one replaces the first
        assert export(run, "--format", "safetensors", "--output", tmp_path / "m.safetensors") == 0
    weights, best = load_file(tmp_path / "m.safetensors"), load_file(run / "best/model.safetensors")
    assert weights.keys() == best.keys() and all(torch.equal(weights[name], best[name]) for name in best)
    assert json.loads((tmp_path / "m.json").read_text())["classes"] == list(SHAPES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.safetensors"]
    assert export(run, "--format", "torch.export", "--output", tmp_path / "m.pt2") == 0


def test_a_crop_that_cannot_be_put_inside(tmp_path):
    border = Preprocess((24, 24), (0.5,) * 3, (0.5,) * 3, crop_mode="border")
    model = write_model(tmp_path / "m", preprocess=border)
    with pytest.raises(UserError, match="crop mode is 'border'"):
        export(model, "--format", "onnx", "--with-preprocessing", "--output", tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_head_that_its_library_does_not_build(tmp_path):
    from ddp_ft.config.schema import HeadConfig

    model = write_library_model(tmp_path / "m", "timm/test_vit", 32, HeadConfig(name="mlp:8"))
    with pytest.raises(UserError, match=r"a head of its own \(mlp:8\)"):
        export(model, "--format", "safetensors", "--output", tmp_path / "folder")
    assert export(model, "--format", "torch_export", "--output", tmp_path / "m.pt2") == 0


class Trap:
    def __reduce__(self):
        return (open, (Trap.file, "w"))

    file = ""


@pytest.mark.parametrize("place", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0"])
def test_a_program_that_brings_code_along_is_not_opened(run, tmp_path, place):
    """torch.export.load itself would run it."""
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    assert export(run, "--format", "torch_export", "--output", good) == 0
    Trap.file = str(tmp_path / "trapped")
    torch.save(Trap(), tmp_path / "trap.pt")
    with zipfile.ZipFile(good) as whole, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as changed:
        root = whole.namelist()[0].split("/")[0]
        for name in whole.namelist():
            if name != f"{root}/{place}":
                changed.writestr(name, whole.read(name))
        changed.write(tmp_path / "trap.pt", f"{root}/{place}")
    with pytest.raises(UserError, match="could run foreign code"):
        load_trained(bad, CPU)
    assert not (tmp_path / "trapped").exists()
    load_trained(good, CPU)


OUTSIDE = """
import sys, torch
sys.modules["ddp_ft"] = None
images = torch.load(sys.argv[1])
FOLDER = sys.argv[2]
{lines}
with torch.no_grad():
    torch.save(model(images), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("timm/test_vit", 64), ("torchvision/mobilenet_v2", 64)])
def test_the_readme_of_a_folder_loads_it_without_this_package(name, size, tmp_path):
    model = write_library_model(tmp_path / "m", name, size)
    folder = tmp_path / "folder"
    for _ in range(2):  # also over an older one
        assert export(model, "--format", "safetensors", "--output", folder) == 0
    readme = (folder / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    trained = load_trained(folder, CPU)
    images = torch.randn(3, 3, *trained.processor.preprocess.size)
    torch.save(images, tmp_path / "images.pt")
    program = OUTSIDE.format(lines=lines)
    command = [sys.executable, "-c", program, tmp_path / "images.pt", folder, tmp_path / "outputs.pt"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = load_trained(model, CPU).module(images)
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), wanted, rtol=1e-4, atol=1e-5)
    if name.startswith("timm"):
        import timm

        found = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
        own = trained.processor.preprocess
        assert tuple(found["input_size"][1:]) == own.size
        assert (tuple(found["mean"]), tuple(found["std"])) == (own.mean, own.std)
        assert (found["interpolation"], found["crop_pct"]) == (own.interpolation, own.crop_pct)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("timm/test_vit", "m.onnx"), ("timm/test_convnext", "m.pt2")])
def test_models_of_libraries_can_be_exported(name, file, tmp_path):
    model = write_library_model(tmp_path / "m", name, 64)
    kind = "onnx" if file == "m.onnx" else "torch_export"
    assert export(model, "--format", kind, "--output", tmp_path / file, "--check", 8) == 0
