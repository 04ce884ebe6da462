"""The record of bad steps, and `ddp-ft replay`: the same batch once more, to the last digit."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddp_ft.cli.main import ddp_ft
from ddp_ft.contracts import Address
from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.errors import UserError
from ddp_ft.run_folder.bad_batches import BadBatch, bad_batch_weights, describe_samples, read_bad_batch, write_bad_batch
from tests.support import nets
from tests.support.runs import column, read, train_here, train_on

WEIGHTS = {"w": torch.arange(4.0)}
EVERY_STEP = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99"]


def bad_batch(step: int, **changes) -> BadBatch:
    source = LabelledFileSource(Path("data"), ["a/1.png", "b/odd\udcff\n.png"], np.array([0, 1]))
    samples = describe_samples(source, [Address(1, 0, 8), Address(0, 0, 9), Address(0, 0, 9, ghost=True)])
    values = {
        "step": step, "epoch": 0.25, "samples": samples, "seed": 0, "noise_seeds": [7, 8], "world_size": 2,
        "micro_batch": None, "precision": "fp16", "learning_rates": {"head": 0.01}, "loss_scale": 1024.0,
        "loss": math.nan, "grad_norm": math.inf, **changes,
    }  # fmt: skip
    return BadBatch(**values)


def test_a_bad_step_is_written_down(tmp_path):
    line = write_bad_batch(tmp_path, bad_batch(12), WEIGHTS)
    assert line.startswith("Warning: step 12: loss nan, gradient norm inf;") and "step_00000012" in line
    strict = json.loads((tmp_path / "bad_batches/step_00000012/batch.json").read_text(), parse_constant=pytest.fail)
    assert (strict["loss"], strict["grad_norm"], strict["loss_scale"]) == ("nan", "inf", 1024)
    assert [(row["position"], row["index"], row["label"]) for row in strict["samples"]] == [(8, 1, 1), (9, 0, 0)]
    assert strict["samples"][1]["path"] == "data/a/1.png"
    found = read_bad_batch(tmp_path, 12)
    assert math.isnan(found["loss"]) and found["grad_norm"] == math.inf and found["noise_seeds"] == [7, 8]
    assert torch.equal(bad_batch_weights(tmp_path, 12)["w"], WEIGHTS["w"])
    assert read_bad_batch(tmp_path, 11) is None and bad_batch_weights(tmp_path, 11) is None


def test_weights_are_kept_of_the_first_bad_steps_only(tmp_path, monkeypatch):
    monkeypatch.setattr("ddp_ft.run_folder.bad_batches.KEPT_WEIGHTS", 2)
    for step in (3, 4, 5, 3):  # the last one comes again, after a restart
        write_bad_batch(tmp_path, bad_batch(step), WEIGHTS)
    assert [bad_batch_weights(tmp_path, step) is not None for step in (3, 4, 5)] == [True, True, False]
    assert sorted(folder.name for folder in (tmp_path / "bad_batches").iterdir()) == [
        f"step_{step:08d}" for step in (3, 4, 5)
    ]


def test_a_record_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "bad_batches").write_text("in the way")
    assert "could not be written: " in write_bad_batch(tmp_path, bad_batch(1), WEIGHTS)


def replay(run: Path, step: int, *more: object) -> tuple[int, str]:
    """Exit code and output of `ddp-ft replay`; UserErrors are raised. Nothing in the run may change."""
    before = contents(run)
    arguments = ["replay", str(run), str(step), "--device", "cpu", *map(str, more)]
    outcome = click.testing.CliRunner().invoke(ddp_ft, arguments, standalone_mode=False)
    assert contents(run) == before
    if outcome.exception:
        raise outcome.exception
    return outcome.return_value, outcome.output


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def numbers(output: str) -> tuple[float, float]:
    (line,) = [line for line in output.splitlines() if line.startswith("Loss ")]
    words = line.replace(",", "").split()
    return float(words[1]), float(words[4])


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """Two ranks, dropout and batch norm, mixing, micro-batches: what a replay must put together again."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    mixed = ["--mixup", 0.4, "--cutmix", 1, "--micro-batch", 2]
    train_on(2, shapes, folder, *mixed, *EVERY_STEP, net="with_batch_norm", epochs=2)
    return folder


@pytest.mark.parametrize("step", [2, 7])
def test_any_step_is_repeated_as_it_was(run, step):
    code, output = replay(run, step)
    assert code == 0 and "All is finite." in output
    assert f"checkpoint step_{step - 1:08d}\n" in output
    loss, grad_norm = numbers(output)
    assert loss == pytest.approx(column(run, "loss")[step - 1], rel=1e-4)
    assert grad_norm == pytest.approx(column(run, "grad_norm")[step - 1], rel=1e-4)
    images = [line.split() for line in output.splitlines() if line.endswith(".png")]
    assert len(images) in (7, 8) and [int(row[0]) for row in images] == sorted(int(row[0]) for row in images)
    assert all(row[1] in row[5] and row[3] == "yes" for row in images), "an image's label is its folder"


def test_the_first_step_begins_with_the_initial_weights(run):
    code, output = replay(run, 1)
    assert code == 0 and "those that the run began with\n" in output
    assert numbers(output)[0] == pytest.approx(column(run, "loss")[0], rel=1e-4)


def test_a_bad_step_is_repeated_with_its_weights(run, tmp_path):
    """Weights of which one is infinite: the replay says where it begins, and leaves with 1."""
    shutil.copytree(run, tmp_path / "r", symlinks=True)
    plan, stored = read(run, "plan.json"), load_file(run / "checkpoints/step_00000004/model.safetensors")
    stored["3.weight"][0] = math.inf
    cut = {"world_size": plan["world_size"], "micro_batch": plan["micro_batch"], "loss_scale": 1.0}
    write_bad_batch(tmp_path / "r", bad_batch(5, **cut), stored)
    code, output = replay(tmp_path / "r", 5)
    assert code == 1 and "Not all is finite." in output
    assert "Weights: those that step 5 began with" in output and "The run had: loss nan, gradient norm inf" in output
    assert "First layer whose output is not finite: 3\n" in output
    assert "whose gradient is not finite: 9." in output, "from the loss backwards the head comes first"
    assert output.count("  NO  ") > 8


def test_one_bad_image_is_told_from_the_others(shapes, tmp_path):
    """A net that gives NaN for images of one kind: the table says which they are."""
    net = tmp_path / "net.py"
    net.write_text(PICKY)
    args = ["--model", f"{net}:picky", "--augment", "none", "--set", "loss.label_smoothing=0"]
    train_here(shapes, tmp_path / "r", *args, *EVERY_STEP)
    code, output = replay(tmp_path / "r", 3)
    assert code == 0
    net.write_text(PICKY.replace("never", "bright"))
    code, output = replay(tmp_path / "r", 3)
    rows = [line.split() for line in output.splitlines() if line.endswith(".png")]
    finite = {row[3] for row in rows}
    assert code == 1 and finite == {"yes", "NO"}
    assert all((row[3] == "NO") == (row[2] == "nan") for row in rows)


PICKY = """
import torch
from torch import nn

class Picky(nn.Sequential):
    never = torch.inf
    bright = 1.5

    def forward(self, images):
        outputs = super().forward(images)
        return outputs * torch.where(images.amax((1, 2, 3)) > self.never, torch.nan, 1.0)[:, None]

def picky(num_classes=3):
    pool = nn.AdaptiveAvgPool2d(1)
    return Picky(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, num_classes))
"""


def test_the_bad_steps_of_a_run_are_bad_again(shapes, tmp_path):
    """What training writes down of its own is what replay takes up."""
    net = tmp_path / "net.py"
    net.write_text(PICKY.replace("self.never", "2.5"))
    args = ["--model", f"{net}:picky", "--augment", "none", "--set", "train.max_bad_steps=99", "--batch-size", 2]
    train_here(shapes, tmp_path / "r", *args)
    bad = [int(folder.name.removeprefix("step_")) for folder in sorted(tmp_path.glob("r/bad_batches/step_*"))]
    good = sorted(set(range(1, 16)) - set(bad))
    assert bad and good
    code, output = replay(tmp_path / "r", bad[0])
    assert code == 1 and f"those that step {bad[0]} began with" in output and "The run had: loss nan" in output
    assert replay(tmp_path / "r", good[0])[0] == 0


def test_what_cannot_be_replayed(run, shapes, tmp_path):
    for step in (0, 9, 10**6):
        with pytest.raises(UserError, match=rf"no step {step}\.\nIts steps are 1 to 8"):
            replay(run, step)
    with pytest.raises(UserError, match="is no run folder"):
        replay(tmp_path, 1)
    shutil.copytree(run, tmp_path / "r", symlinks=True)
    shutil.rmtree(tmp_path / "r/checkpoints")
    assert "no checkpoint from before the step is left" in replay(tmp_path / "r", 4)[1]
    write_bad_batch(tmp_path / "r", bad_batch(4), WEIGHTS)
    with pytest.raises(UserError, match="another model"):
        replay(tmp_path / "r", 4)
    save_file(nets.plain().state_dict(), tmp_path / "weights.safetensors")
    cached = [
        "--freeze",
        "backbone",
        "--set",
        "freeze.cache_features=true",
        "--weights",
        tmp_path / "weights.safetensors",
    ]
    train_here(shapes, tmp_path / "cached", *cached)
    with pytest.raises(UserError, match="steps on images"):
        replay(tmp_path / "cached", 1)
