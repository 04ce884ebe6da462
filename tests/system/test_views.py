"""Views at test time as a choice of the run: they count in its test, and in all that uses its model."""

import csv
import json
import shutil

import pytest
import torch

import ddp_ft
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.evaluate import evaluate
from ddp_ft.inference.asked import Asked
from ddp_ft.inference.ensemble import load_ensemble
from ddp_ft.inference.predict_request import Request, key_of, open_rows
from ddp_ft.predict import predict
from tests.support.runs import read, rows, train_here, train_on

pytestmark = pytest.mark.xdist_group("views")
TTA = ["--set", "eval.tta=flip"]


def call(command, *words) -> None:
    command.main([str(word) for word in (*words, "--device", "cpu")], standalone_mode=False)


@pytest.fixture(scope="module")
def data(shapes, tmp_path_factory):
    """The images to validate on test, too."""
    folder = tmp_path_factory.mktemp("views") / "data"
    folder.mkdir()
    for name, source in (("train", "train"), ("val", "val"), ("test", "val")):
        (folder / name).symlink_to(shapes / source)
    return folder


@pytest.fixture(scope="module")
def viewed(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("viewed") / "run"
    train_here(data, run, *TTA, "--set", "log.report=true", epochs=2)
    return run


def test_the_test_and_a_second_validation_are_with_views(viewed):
    summary = read(viewed, "summary.json")
    assert summary["val_views"]["loss"] != summary["val"]["loss"]
    assert summary["test"]["loss"] == pytest.approx(summary["val_views"]["loss"], rel=1e-6)
    [best] = [row for row in rows(viewed, "val") if row["step"] == summary["best_step"]]
    assert best["loss"] == summary["val"]["loss"]


def test_its_report_says_what_they_cost(viewed):
    page = (viewed / "report.html").read_text()
    assert "Views at test time" in page and "flip: 2 passes of each image" in page
    assert (
        "are of one pass of each image" in page and "Views at test time: flip" in (viewed / "model_card.md").read_text()
    )


def test_its_model_brings_them_along(viewed, data, tmp_path, capsys):
    assert read(viewed, "best/model.json")["views"] == "flip"
    summary = read(viewed, "summary.json")
    for options, wanted in (((), summary["val_views"]), (("--tta", "none"), summary["val"])):
        capsys.readouterr()
        call(evaluate, viewed, *options)
        assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    for name, options in (("own", ()), ("asked", ("--tta", "flip")), ("none", ("--tta", "none"))):
        call(predict, viewed, data / "val", "--output", tmp_path / f"{name}.csv", *options)
    own, asked, none = ((tmp_path / f"{name}.csv").read_bytes() for name in ("own", "asked", "none"))
    assert own == asked != none
    with (tmp_path / "own.csv").open() as lines:
        row = next(csv.DictReader(lines))
    image = next(iter(row.values()))
    assert float(row["prob_disc"]) == pytest.approx(ddp_ft.load(viewed, "cpu")(image).probabilities["disc"], abs=1e-5)
    assert ddp_ft.load(viewed, "cpu", tta="none")(image) != ddp_ft.load(viewed, "cpu")(image)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_sees_the_same(viewed, data, tmp_path, world_size):
    train_on(world_size, data, tmp_path / "run", *TTA, epochs=2)
    for name in ("val_views", "test"):
        wanted = pytest.approx(read(viewed, "summary.json")[name], rel=1e-4)
        assert read(tmp_path / "run", "summary.json")[name] == wanted


def test_without_views_nothing_is_said(data, tmp_path):
    train_here(data, tmp_path / "run")
    assert "val_views" not in read(tmp_path / "run", "summary.json")
    assert "views" not in read(tmp_path / "run", "best/model.json")


@pytest.mark.parametrize("views", ["rubbish", None, 7, ["flip"]])
def test_unknown_views_in_model_json_are_named(views, viewed, tmp_path):
    shutil.copytree(viewed / "best", tmp_path / "best")
    description = read(tmp_path, "best/model.json")
    (tmp_path / "best/model.json").write_text(json.dumps(description | {"views": views}))
    with pytest.raises(UserError, match="has unknown views"):
        load_ensemble([tmp_path / "best"], torch.device("cpu"))


def test_rows_of_other_views_are_other_rows(viewed, data):
    """So that an interrupted predict with the run's views does not give its rows to one without."""
    world = World(0, 1, 0, torch.device("cpu"))

    def key(views: str | None) -> str:
        request = Request(Asked((viewed / "best",), views, "cpu"), (str(data / "val"),))
        return key_of(request, ".csv", open_rows(request, ".csv", world.device, world), world)

    assert key(None) == key("flip") != key("none")
