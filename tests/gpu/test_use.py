"""What is done with a trained run on the device: evaluate, predict, load, export, doctor."""

import csv
import json
import re

import pytest

import ddp_ft
from tests.gpu.conftest import VAL, command
from tests.support.commands import run_module
from tests.support.ranks import run_ranks
from tests.support.runs import read

pytestmark = pytest.mark.gpu


def test_evaluate_gives_the_summary(machine, trained, record_property):
    done = run_module("ddp_ft.evaluate", trained, "--data", machine.images, "--device", machine.device)
    assert done.returncode == 0, done.stderr[-2000:]
    found, wanted = json.loads(done.stdout), read(trained, "summary.json")["val"]
    record_property("note", "to the bit" if {name: found[name] for name in wanted} == wanted else f"{found}, {wanted}")
    assert found["samples"] == VAL
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("views", ["flip", "crops"])
def test_several_views(machine, trained, views):
    done = run_module("ddp_ft.evaluate", trained, "--data", machine.images, "--device", machine.device, "--tta", views)
    assert done.returncode == 0 and json.loads(done.stdout)["samples"] == VAL, done.stderr[-2000:]


def test_averaged_weights(machine, trained, tmp_path):
    given = ("--last", 2, "--output", tmp_path / "m", "--device", machine.device)
    command("ddp_ft.cli.main", "average", trained, *given)
    assert (tmp_path / "m/model.safetensors").exists()


def load_and_predict(run, device, files):
    return [prediction.probabilities for prediction in ddp_ft.load(run, device)(files)]


def test_predict_and_load_agree(machine, trained, tmp_path):
    table = tmp_path / "p.csv"
    command("ddp_ft.predict", trained, machine.images / "val", "--device", machine.device, "--output", table)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == VAL and not any(row["error"] for row in rows)
    right = sum(f"/{row['class']}/" in row["file"] for row in rows)
    assert right / VAL == pytest.approx(read(trained, "summary.json")["val"]["accuracy"])
    files = [row["file"] for row in rows]
    [found] = run_ranks(1, load_and_predict, trained, machine.device, files, connected=False)
    for row, probabilities in zip(rows, found, strict=True):
        assert {name: float(row[f"prob_{name}"]) for name in probabilities} == pytest.approx(probabilities, abs=1e-3)


@pytest.mark.parametrize(("kind", "file"), [("safetensors", "m"), ("torch_export", "m.pt2"), ("onnx", "m.onnx")])
def test_export(machine, trained, tmp_path, record_property, kind, file):
    """The export itself compares what the file returns, and fails where it differs."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    given = ("--format", kind, "--output", tmp_path / file, "--device", machine.device)
    printed = command("ddp_ft.export", trained, *given, "--check", 8)
    table = tmp_path / "p.csv"
    command("ddp_ft.predict", tmp_path / file, machine.images / "val", "--device", machine.device, "--output", table)
    times = re.search(r"[\d.]+ ms an image by the original, [\d.]+ ms by the export", " ".join(printed.split()))
    record_property("note", times[0] if times else "")


def test_doctor(machine, tmp_path):
    """It may find problems of this machine, which are then the check's reason."""
    done = run_module("ddp_ft.doctor", *machine.options(tmp_path / "r"))
    problems = [line for line in done.stdout.splitlines() if line.split()[:1] == ["problem"]]
    assert done.returncode == 0, problems or done.stderr[-2000:]
