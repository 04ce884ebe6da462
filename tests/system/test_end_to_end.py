"""The commands as users start them."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddp_ft.errors import UserError
from tests.support.runs import arguments, call_on, column, read, train_here

# One process runs all of them: the fixture is a training of some seconds.
pytestmark = pytest.mark.xdist_group("digits")


@pytest.fixture(scope="module")
def digits_run(digits, tmp_path_factory):
    """A run of two processes on real digits, from random weights."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--epochs", 3, "--lr", 0.006, "--set", "optim.head_lr_scale=1", "--set", "augment.flip=0"]
    base = ["--data", digits, "--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "--run-dir", run]
    call_on(2, "ddp_ft.train", *base, *options, "--set", "augment.crop_min=0.8")
    return run


def test_it_learns_and_writes_every_file(digits_run):
    summary = read(digits_run, "summary.json")
    assert summary["status"] == "done" and summary["val"]["accuracy"] >= 0.9
    assert summary["step"] == 3 * 47 and summary["epoch"] == 3 and summary["images_per_second"] > 0
    names = {path.name for path in digits_run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.yaml", "plan.json", "classes.json", "split.json", "metrics.jsonl", "tensorboard", "checkpoints", "best",
        "summary.json", "lease.json", "evaluation", "logs", "provenance.json", "report.html", "model_card.md",
    }  # fmt: skip
    assert read(digits_run, "classes.json") == [str(digit) for digit in range(10)]
    assert {path.name for path in (digits_run / "checkpoints").iterdir()} >= {"last", "best"}


def test_tensorboard_has_the_curves_of_metrics_jsonl(digits_run):
    events = EventAccumulator(str(digits_run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {
        "2_loss/train",
        "2_loss/val",
        "3_quality/val_accuracy",
        "4_speed/images_per_second",
        "6_gradients/grad_norm",
        "5_learning_rates/head",
    }
    assert wanted <= tags
    logged = dict(zip(column(digits_run, "step"), column(digits_run, "loss"), strict=True))
    assert {event.step: event.value for event in events.Scalars("2_loss/train")} == pytest.approx(logged)
    assert "recipe/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluate_gives_the_numbers_of_the_summary(digits_run, digits, world_size):
    found = json.loads(call_on(world_size, "ddp_ft.evaluate", digits_run, "--data", digits))
    assert found == {"split": "val", "samples": 297, **read(digits_run, "summary.json")["val"]}


@pytest.mark.slow
def test_evaluate_gives_them_with_more_threads_too(digits_run, digits):
    command = [sys.executable, "-m", "ddp_ft.evaluate", digits_run, "--data", digits]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert json.loads(done.stdout) == {"split": "val", "samples": 297, **read(digits_run, "summary.json")["val"]}


def test_predict_under_torchrun(digits_run, digits, tmp_path, torchrun):
    done = torchrun(2, [digits_run, digits / "val/7", "--output", tmp_path / "p.csv"], module="ddp_ft.predict")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + len(list((digits / "val/7").iterdir()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_predict_gives_one_row_for_each_input_in_order(digits_run, digits, tmp_path, world_size):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    call_on(
        world_size,
        "ddp_ft.predict",
        digits_run,
        digits / "val/7",
        bad,
        digits / "val/3",
        "--output",
        tmp_path / "p.csv",
    )
    with (tmp_path / "p.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    expected = [*sorted((digits / "val/7").iterdir()), bad, *sorted((digits / "val/3").iterdir())]
    assert [row["file"] for row in found] == [str(path) for path in expected]
    assert [row["file"] for row in found if row["error"]] == [str(bad)]
    sevens = [row for row in found if "/val/7/" in row["file"]]
    assert sum(row["class"] == "7" for row in sevens) >= 0.8 * len(sevens)
    for row in sevens:
        shares = {name: float(row[f"prob_{name}"]) for name in map(str, range(10))}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(shares, key=shares.get) == row["class"] and float(row["probability"]) == shares[row["class"]]


def test_the_best_model_loads_into_plain_timm(digits_run, digits, tmp_path):
    """Three lines without ddp_ft give the class that predict gives."""
    program = f"""
import json, sys, timm, torch
from PIL import Image
from safetensors.torch import load_file
best = {str(digits_run / "best")!r}
description = json.load(open(best + "/model.json"))
model = timm.create_model(description["name"], **description["arguments"]).eval()
model.load_state_dict(load_file(best + "/model.safetensors"))
wanted = {{name: description["preprocessing"][name] for name in ("mean", "std", "interpolation", "crop_pct")}}
prepare = timm.data.create_transform((3, 32, 32), **wanted)
right = 0
import pathlib
files = sorted(pathlib.Path({str(digits)!r}, "val").rglob("*.png"))
for file in files:
    output = model(prepare(Image.open(file).convert("RGB"))[None])
    right += description["classes"][int(output.argmax())] == file.parent.name
assert "ddp_ft" not in sys.modules
print(right / len(files))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(read(digits_run, "summary.json")["val"]["accuracy"], abs=0.01)


@pytest.mark.slow
def test_the_console_script_trains_too(shapes, tmp_path):
    from pathlib import Path

    script = Path(sys.executable).with_name("ddp-ft")
    done = subprocess.run(
        [script, "train", *arguments(shapes, tmp_path / "r")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and (tmp_path / "r/best/model.json").is_file()


def test_evaluate_takes_the_split_that_the_run_drew(shapes, tmp_path, capsys):
    from ddp_ft.evaluate import evaluate

    train_here(shapes / "train", tmp_path / "r", "--val-split", 0.3)
    capsys.readouterr()
    command = [str(tmp_path / "r"), "--data", str(shapes / "train"), "--output", str(tmp_path / "m.json")]
    evaluate.main(command, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (
        found
        == {"split": "val", "samples": 9, **read(tmp_path / "r", "summary.json")["val"]}
        == read(tmp_path, "m.json")
    )
    evaluate.main([str(tmp_path / "r")], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == found, "without --data it is the run's own"
    shutil.copytree(tmp_path / "r/best", tmp_path / "alone/best")
    with pytest.raises(UserError, match="belongs to no run folder"):
        evaluate.main([str(tmp_path / "alone/best")], standalone_mode=False)


def test_evaluate_on_a_folder_of_class_folders_counts_all(shapes, tmp_path, capsys):
    from ddp_ft.evaluate import evaluate

    train_here(shapes, tmp_path / "r")
    capsys.readouterr()
    evaluate.main([str(tmp_path / "r"), "--data", str(shapes / "train")], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["samples"]) == ("all", 30)


@pytest.mark.parametrize(
    "module", ["ddp_ft.train", "ddp_ft.evaluate", "ddp_ft.predict", "ddp_ft.export", "ddp_ft.cli.main"]
)
def test_help_comes_without_torch(module):
    name = module.rpartition(".")[2].replace("main", "ddp_ft")
    program = (
        f"import sys\nfrom {module} import {name}\n{name}.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
