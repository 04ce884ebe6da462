"""Several models as one, and several views of each image."""

import csv
import importlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.image.views import ImageViews
from ddp_ft.data.sources.files import FileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.inference.ensemble import VIEWS, combine_members, load_ensemble, with_views
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.tasks.registry import restore_task
from tests.support.runs import call_on
from tests.support.trained import PREPROCESS, write_model

CPU = torch.device("cpu")
LARGE = Preprocess((32, 24), (0.4, 0.4, 0.4), (0.3, 0.3, 0.3), "bicubic", crop_pct=1.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of other weights, architecture and input size."""
    root = tmp_path_factory.mktemp("models")
    return [write_model(root / "a", 1), write_model(root / "b", 2, net="with_batch_norm", preprocess=LARGE)]


def call(command, *args):
    function = getattr(importlib.import_module(f"ddp_ft.{command}"), command)
    return function.main([str(argument) for argument in args], standalone_mode=False)


def evaluate(capsys, *args):
    capsys.readouterr()
    call("evaluate", *args, "--device", "cpu")
    return json.loads(capsys.readouterr().out)


def predict(output, *args):
    call("predict", *args, "--output", output, "--device", "cpu")
    with output.open(newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities_by_hand(model, paths, views=lambda image: [image], preprocess=None):
    """Softmax of the bare module's outputs, one image and view at a time: images x views x classes."""
    trained = load_trained(model, CPU)
    own = trained.processor.preprocess
    transform, source = eval_transform(preprocess or own), FileSource(paths)
    found = []
    for index in range(len(source)):
        image = transform(source.read(index)["image"]).float() / 255
        image = (image - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
        with torch.no_grad():
            found.append(torch.stack([trained.module(view[None])[0].softmax(0) for view in views(image)]))
    return torch.stack(found)


def shares(rows, names=("disc", "square", "stripes")):
    return torch.tensor([[float(row[f"prob_{name}"]) for name in names] for row in rows])


def test_the_options_name_all_views():
    for command in ("evaluate", "predict"):
        function = getattr(importlib.import_module(f"ddp_ft.{command}"), command)
        [option] = [parameter for parameter in function.params if parameter.name == "tta"]
        assert tuple(option.type.choices) == VIEWS


def test_a_model_with_itself_is_that_model(models, shapes, tmp_path, capsys):
    for model in models:
        alone = evaluate(capsys, model, "--data", shapes)
        twice = evaluate(capsys, model, "--also", model, "--data", shapes)
        assert twice == pytest.approx(alone, abs=2e-5) and alone["samples"] == 12
        one, two = (predict(tmp_path / "p.csv", model, *more, shapes / "val") for more in ([], ["--also", model]))
        torch.testing.assert_close(shares(two), shares(one), rtol=0, atol=2e-6)


def test_two_models_predict_their_mean_probability(models, shapes, tmp_path):
    """Each sees the image at its own size."""
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    rows = predict(tmp_path / "p.csv", models[0], shapes / "val", bad, "--also", models[1])
    paths = list_images([str(shapes / "val")])
    expected = torch.stack([probabilities_by_hand(model, paths)[:, 0] for model in models]).mean(0)
    assert [row["file"] for row in rows if row["error"]] == [str(bad)] and len(rows) == 13
    torch.testing.assert_close(shares(rows[:-1]), expected, rtol=0, atol=2e-6)
    assert [row["class"] for row in rows[:-1]] == [("disc", "square", "stripes")[k] for k in expected.argmax(1)]
    alone = shares(predict(tmp_path / "q.csv", models[0], shapes / "val"))
    assert float((alone - expected).abs().max()) > 0.01


def test_two_models_are_evaluated_by_their_mean_probability(models, shapes, capsys):
    found = evaluate(capsys, models[0], "--also", models[1], "--data", shapes)
    paths = list_images([str(shapes / "val")])
    expected = torch.stack([probabilities_by_hand(model, paths)[:, 0] for model in models]).mean(0)
    target = torch.arange(3).repeat_interleave(4)
    assert found["accuracy"] == pytest.approx(float((expected.argmax(1) == target).float().mean()))
    assert found["loss"] == pytest.approx(float(nn.functional.nll_loss(expected.log(), target)), abs=2e-5)


def mirrored(image):
    return [image, image.flip(-1)]


def ten_crops(image):
    height, width = PREPROCESS.size
    down, right = image.shape[1] - height, image.shape[2] - width
    places = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
    crops = [image[:, top : top + height, left : left + width] for top, left in places]
    return [view for crop in crops for view in mirrored(crop)]


# 24 pixels at a crop of 0.9 would be cut from 26: less than 224 of 256, so that it is 27.
@pytest.mark.parametrize(
    ("views", "by_hand", "preprocess"),
    [("flip", mirrored, None), ("crops", ten_crops, replace(PREPROCESS, size=(27, 27), crop_pct=1.0))],
)
def test_views_are_combined_to_their_mean_probability(models, shapes, tmp_path, views, by_hand, preprocess):
    rows = predict(tmp_path / "p.csv", models[0], shapes / "val", "--tta", views)
    expected = probabilities_by_hand(models[0], list_images([str(shapes / "val")]), by_hand, preprocess)
    assert expected.shape[1] == {"flip": 2, "crops": 10}[views]
    torch.testing.assert_close(shares(rows), expected.mean(1), rtol=0, atol=2e-6)
    assert float((shares(rows) - expected[:, 0]).abs().max()) > 1e-3


class Mean(nn.Module):
    """Blind to left and right."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_a_symmetric_model_does_not_see_the_mirror():
    trained, batch = load_like(PREPROCESS), {"image": torch.randint(256, (5, 3, 24, 24), dtype=torch.uint8)}
    batch["index"] = torch.arange(5)
    plain, mirrored = (
        make_scorer(with_views(trained, views), World(0, 1, 0, CPU)).predictions(batch) for views in ("none", "flip")
    )
    torch.testing.assert_close(trained.task.estimates(mirrored), trained.task.estimates(plain))


def test_views_keep_the_memory_format():
    for memory_format in (torch.channels_last, torch.contiguous_format):
        images = torch.randn(2, 3, 9, 9).contiguous(memory_format=memory_format)
        seen = ImageViews("crops", (8, 8))({"image": images})
        assert len(seen) == 10 and all(view["image"].is_contiguous(memory_format=memory_format) for view in seen)


def test_crops_of_a_model_that_sees_little_of_the_image_stay_within_that():
    narrow = replace(PREPROCESS, size=(20, 30), crop_pct=0.5)
    member = with_views(load_like(narrow), "crops")
    assert (member.processor.preprocess.size, member.processor.preprocess.crop_pct) == ((40, 60), 1.0)
    assert member.views.size == (20, 30)


def load_like(preprocess):
    from ddp_ft.inference.trained_model import Trained

    task = restore_task("single-label", {"classes": ["a", "b", "c"]})
    return Trained(Mean(), ImageProcessor(preprocess), call_with_images, task, ("a", "b", "c"), "fp32", False)


def test_metrics_are_the_same_on_any_number_of_processes(models, shapes, capsys):
    options = [models[0], "--data", shapes, "--split", "train", "--also", models[1], "--tta", "flip"]
    expected = evaluate(capsys, *options)
    assert expected["samples"] == 30
    for world_size in (2, 3):
        assert json.loads(call_on(world_size, "ddp_ft.evaluate", *options, "--device", "cpu")) == expected


@pytest.mark.slow
def test_predictions_are_the_same_on_any_number_of_processes(models, shapes, tmp_path):
    options = [models[0], shapes, "--also", models[1], "--tta", "crops"]
    assert len(predict(tmp_path / "1.csv", *options)) == 42
    for world_size in (2, 3):
        output = tmp_path / f"{world_size}.csv"
        call_on(world_size, "ddp_ft.predict", *options, "--output", output, "--device", "cpu")
        assert output.read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_regression_is_averaged_in_the_units_of_the_target(shapes, tmp_path):
    """Folds standardise by training sets of their own: the same output means another number."""
    standards = {"one": {"mean": [10.0, -1.0], "std": [2.0, 0.5]}, "two": {"mean": [12.0, -3.0], "std": [3.0, 0.25]}}
    names = ("age", "weight")
    folders = [
        write_model(tmp_path / name, seed, task="regression", names=names, settings=standard)
        for seed, (name, standard) in enumerate(standards.items())
    ]
    own = [predict(tmp_path / "p.csv", folder, shapes / "val") for folder in folders]
    both = predict(tmp_path / "p.csv", folders[0], "--also", folders[1], shapes / "val")
    for row, one, two in zip(both, *own, strict=True):
        for name in names:
            assert float(row[name]) == pytest.approx((float(one[name]) + float(two[name])) / 2, rel=1e-5)


def test_several_labels_are_averaged_as_probabilities(shapes, tmp_path):
    folders = [write_model(tmp_path / str(seed), seed, task="multi-label") for seed in (1, 2)]
    own = [shares(predict(tmp_path / "p.csv", folder, shapes / "val")) for folder in folders]
    both = shares(predict(tmp_path / "p.csv", folders[0], "--also", folders[1], shapes / "val"))
    torch.testing.assert_close(both, (own[0] + own[1]) / 2, rtol=0, atol=2e-6)


def test_one_model_is_left_as_it_is(models):
    [member], predictions = load_ensemble(models[:1], CPU), {"logits": torch.randn(4, 3)}
    assert combine_members([member], [predictions]) is predictions
    assert with_views(member, "none") is member


def test_models_that_do_not_fit_are_named_with_all_differences(models, tmp_path):
    other = write_model(tmp_path / "other", names=("disc", "square", "blob"))
    order = write_model(tmp_path / "order", names=("stripes", "disc", "square"))
    task = write_model(tmp_path / "task", task="multi-label")
    with pytest.raises(UserError) as caught:
        load_ensemble([models[0], other, models[1], order, task], CPU)
    message = str(caught.value)
    assert "other: it knows blob in addition" in message and "other: it does not know stripes" in message
    assert "order: it has the names in another order: stripes, disc, square" in message
    assert "task: its task is multi-label, not single-label" in message
    assert f"{models[1]}:" not in message


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_second_model_that_is_not_there(models, shapes, tmp_path, command):
    more = ["--data", shapes] if command == "evaluate" else [shapes, "--output", tmp_path / "p.csv"]
    with pytest.raises(UserError, match="nowhere is not there"):
        call(command, models[0], *more, "--also", tmp_path / "nowhere")


def test_a_model_folder_within_a_run_has_the_split_of_the_run(shapes, tmp_path, capsys):
    from tests.support.trained import write_run

    run = write_run(tmp_path / "run", shapes / "train", {1: 0.5}, settings={"data.val_split": 0.3})
    other = write_model(run / "average", 5)
    found = evaluate(capsys, other, "--data", shapes / "train")
    assert (found["split"], found["samples"]) == ("val", 9)
    assert evaluate(capsys, run / "best", "--data", shapes / "train")["samples"] == 9
    assert evaluate(capsys, run, "--data", shapes / "train", "--split", "train")["samples"] == 21
