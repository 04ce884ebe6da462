"""`predict`: its tables, and that a prediction which was killed goes on."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddp_ft.config.loading import make_config
from ddp_ft.errors import EXIT_UNREAD, UserError
from ddp_ft.inference.partial_output import Part, Parts
from ddp_ft.run_folder.folder import RunFolder
from tests.support.commands import Command
from tests.support.images import SHAPES
from tests.support.runs import call_on
from tests.support.tables import write_csv
from tests.support.trained import write_model

CHUNKS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m", 1)


@pytest.fixture(scope="module")
def many(shapes, tmp_path_factory):
    """A table of a few images again and again, and some that are not there: 5 chunks, the last one not whole."""
    images = sorted((shapes / "val").rglob("*.png"))
    paths = [str(images[k % len(images)]) if k % 50 else f"gone{k}.png" for k in range(64 * CHUNKS - 20)]
    return write_csv(tmp_path_factory.mktemp("many") / "t.csv", {"path": paths})


def predict(*args):
    from ddp_ft.predict import predict as command

    return command.main([*map(str, args), "--device", "cpu"], standalone_mode=False)


def read_csv(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_all_formats_say_the_same(model, shapes, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        predict(model, shapes / "val", bad, "--output", tmp_path / name, "--top-k", 2)
    rows = read_csv(tmp_path / "p.csv")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == list(rows[0]) == [
        "file", "class", "probability", "prob_disc", "prob_square", "prob_stripes", "class_2", "probability_2", "error",
    ]  # fmt: skip
    for row, line, cells in zip(rows[:-1], lines[:-1], table.to_pylist()[:-1], strict=True):
        assert row["file"] == line["file"] == cells["file"]
        ranked = sorted(SHAPES, key=lambda name: -cells[f"prob_{name}"])
        assert [row["class"], row["class_2"]] == [cells["class"], cells["class_2"]] == ranked[:2]
        assert [each["class"] for each in line["top"]] == ranked[:2] and line["class"] == ranked[0]
        for name in SHAPES:
            assert line["probabilities"][name] == pytest.approx(cells[f"prob_{name}"], abs=1e-6)
            assert float(row[f"prob_{name}"]) == pytest.approx(cells[f"prob_{name}"], abs=1e-6)
        assert float(row["probability_2"]) == pytest.approx(cells["probability_2"], abs=1e-6)
        assert cells["error"] is None and row["error"] == "" and "error" not in line
    assert rows[-1]["error"] == lines[-1]["error"] == table["error"][-1].as_py() == "not an image"
    assert table["class"][-1].as_py() is None and list(lines[-1]) == ["file", "error"]
    assert len(rows) == len(lines) == len(table) == 13


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_printed_is_what_a_file_has(model, many, tmp_path, world_size):
    for form in ("csv", "jsonl"):
        predict(model, many, "--column", "path", "--output", tmp_path / f"p.{form}")
        args = ("--column", "path", "--output", "-", "--format", form)
        printed = call_on(world_size, "ddp_ft.predict", model, many, *args)
        assert printed.encode() == (tmp_path / f"p.{form}").read_bytes()


def test_without_an_output_there_are_lines_to_look_at(model, shapes, tmp_path, capfd):
    (tmp_path / "bad.png").write_text("no image")
    predict(model, shapes / "val/disc", tmp_path / "bad.png")
    *lines, bad = capfd.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith(f"{shapes}/val/disc/") for line in lines)
    assert re.fullmatch(r".*\.png +(\w+) +\(\1 \d+\.\d%, \w+ \d+\.\d%, \w+ \d+\.\d%\)", lines[0]), lines[0]
    assert bad.split()[1:] == ["error:", "not", "an", "image"]
    with pytest.raises(UserError, match=r"--format csv is for --output -"):
        predict(model, shapes / "val", "--output", tmp_path / "p.jsonl", "--format", "csv")


def test_lines_stay_short_whatever_the_names_are(shapes, tmp_path, capfd):
    names = ("猫", *(f"class {k} " + "of a long name" * 5 for k in range(99)))
    lines = {}
    for task in ("single-label", "multi-label", "regression"):
        settings = {"mean": [0.0] * 100, "std": [1.0] * 100} if task == "regression" else {}
        predict(write_model(tmp_path / task, 1, task=task, names=names, settings=settings), shapes / "val/disc/10.png")
        [lines[task]] = capfd.readouterr().out.replace(f"{shapes}/val/disc/", "").splitlines()
    assert all(len(line) < 60 * 8 and ("…" in line or "and 92 more" in line) for line in lines.values()), lines
    assert lines["regression"].endswith("and 92 more") and re.search(r"…,? and \d+ more  \(", lines["multi-label"])


def test_no_line_is_wider_than_a_terminal(model, shapes, monkeypatch, capfd):
    photo = shapes / "val/disc/10.png"
    monkeypatch.setenv("COLUMNS", "40")
    predict(model, photo)
    whole = capfd.readouterr().out
    assert whole.startswith(f"{photo}  ")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    predict(model, photo)
    line = capfd.readouterr().out
    assert re.fullmatch(r"….*/disc/10\.png  \w+ +\(.*…\n", line) and len(line) == 41
    predict(model, photo, "--output", "-")
    assert len(capfd.readouterr().out.splitlines()[1]) > 40


def test_lines_of_other_tasks(shapes, tmp_path, capfd):
    write_model(tmp_path / "labels", 1, task="multi-label")
    predict(tmp_path / "labels", next((shapes / "val/disc").iterdir()))
    assert re.search(r"png  [\w, ]+  \(\w+ \d", capfd.readouterr().out)


def test_other_tasks_have_their_own_columns(shapes, tmp_path):
    labels = write_model(tmp_path / "labels", 1, task="multi-label")
    standard = {"mean": [10.0, -1.0], "std": [2.0, 0.5]}
    numbers = write_model(tmp_path / "n", 1, task="regression", names=("age", "weight"), settings=standard)
    for model in (labels, numbers):
        for suffix in ("csv", "jsonl", "parquet"):
            predict(model, shapes / "val/disc", "--output", tmp_path / f"{model.name}.{suffix}")
    [first, *_] = read_csv(tmp_path / "labels.csv")
    line = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    cells = pq.read_table(tmp_path / "labels.parquet").to_pylist()[0]
    assert first["classes"].split(";") == line["classes"] == cells["classes"]
    [first, *_] = read_csv(tmp_path / "n.csv")
    line = json.loads((tmp_path / "n.jsonl").read_text().splitlines()[0])
    cells = pq.read_table(tmp_path / "n.parquet").to_pylist()[0]
    assert float(first["age"]) == pytest.approx(line["values"]["age"]) == pytest.approx(cells["age"])
    with pytest.raises(UserError, match="--top-k 2 is for one class"):
        predict(labels, shapes / "val", "--output", tmp_path / "p.csv", "--top-k", 2)


def test_bad_wishes_end_before_anything_is_computed(model, shapes, tmp_path):
    wishes = {
        r"p\.txt: a file of an unknown kind": ["--output", tmp_path / "p.txt"],
        "the model has 3 classes": ["--output", tmp_path / "p.csv", "--top-k", 4],
        "is a folder": ["--output", tmp_path / "folder.csv"],
    }
    (tmp_path / "folder.csv").mkdir()
    for message, options in wishes.items():
        with pytest.raises(UserError, match=message):
            predict(model, shapes / "val", *options)
    for name in ("m.onnx", "m.pt2"):
        (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(UserError, match="cannot be read"):
            predict(tmp_path / name, shapes / "val", "--output", tmp_path / "p.csv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.csv", "m.onnx", "m.pt2"]


def test_any_batch_size_and_number_of_workers_have_the_same_rows(model, many, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    predict(model, many, "--column", "path", "--output", whole)
    predict(model, many, "--column", "path", "--output", parts, "--batch-size", 5, "--workers", 0)
    for lines in zip(*(file.read_text().splitlines() for file in (whole, parts)), strict=True):
        one, other = map(json.loads, lines)
        assert one.pop("probabilities", {}) == pytest.approx(other.pop("probabilities", {}), abs=1e-6)
        assert one.pop("probability", 0) == pytest.approx(other.pop("probability", 0), abs=1e-6)
        assert one == other
    with pytest.raises(UserError, match="at most 64 images are computed at once"):
        predict(model, many, "--batch-size", 65)


def test_the_column_of_paths_is_named_or_that_of_the_run(shapes, tmp_path, capfd):
    folder = RunFolder(write_model(tmp_path / "run/best", 1).parent)
    folder.write_config(make_config({"data.image": "photo"}))
    [image, *_] = (shapes / "val/disc").iterdir()
    columns = {"photo": [str(image)], "image": ["gone.png"], "other": ["away.png"]}
    tables = [write_csv(tmp_path / "t.csv", columns), tmp_path / "t.parquet"]
    pq.write_table(pa.table(columns), tables[1])
    options = {"disc": [], "gone.png": ["--column", "image"], "away.png": ["--set", "data.image=other"]}
    for table in tables:
        for found, more in options.items():
            predict(folder.path, table, *more)
            assert found in capfd.readouterr().out
    predict(folder.path, write_csv(tmp_path / "plain.csv", {"image": [str(image)]}))
    assert "disc" in capfd.readouterr().out


@pytest.fixture(scope="module")
def unbroken(model, many, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken") / "p.csv"
    predict(model, many, "--column", "path", "--output", output)
    return output


def test_what_was_done_is_taken_over(model, many, unbroken, tmp_path, capsys):
    output = tmp_path / "p.csv"
    in_the_way = tmp_path / ".p.csv.writing"
    in_the_way.mkdir()
    with pytest.raises(UserError, match="All rows are kept"):
        predict(model, many, "--column", "path", "--output", output)
    in_the_way.rmdir()
    [folder] = (tmp_path / "p.csv.parts").iterdir()
    parts = sorted(folder.iterdir())
    assert [part.name for part in parts] == [f"{k:08d}" for k in range(CHUNKS)]
    parts[1].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:-1])
    capsys.readouterr()
    predict(model, many, "--column", "path", "--output", output)
    said = capsys.readouterr().out
    assert f"300 rows in {output}, 6 with an error (172 were there from an interrupted start)" in said
    assert output.read_bytes() == unbroken.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["p.csv"]


def test_what_was_done_with_other_options_is_not(model, many, unbroken, tmp_path, capsys):
    output = tmp_path / "p.csv"
    (tmp_path / ".p.csv.writing").mkdir()
    with pytest.raises(UserError):
        predict(model, many, "--column", "path", "--output", output, "--top-k", 2)
    (tmp_path / ".p.csv.writing").rmdir()
    capsys.readouterr()
    predict(model, many, "--column", "path", "--output", output)
    assert "interrupted" not in capsys.readouterr().out
    assert output.read_bytes() == unbroken.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["p.csv"]


def test_parts_of_a_rank_that_does_not_see_the_folder_stay_with_it(tmp_path):
    away = Parts(tmp_path / "elsewhere", is_shared=False)
    away.put(3, Part(1, 0, b"row"))
    assert away.held == {3: Part(1, 0, b"row")} and not (tmp_path / "elsewhere").exists()
    here = Parts(tmp_path, is_shared=True)
    here.put(0, Part(2, 1, b"a\nb"))
    assert here.read(0) == Part(2, 1, b"a\nb") and here.read(1) is None
    (tmp_path / "00000000").write_bytes(b"")  # as some file systems leave it when the power fails
    assert here.read(0) is None
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="removed meanwhile"):
        here.put(1, Part(1, 0, b"row"))


@pytest.mark.slow
def test_a_prediction_that_is_killed_goes_on_on_another_number_of_processes(many, tmp_path):
    suffix = "parquet"
    slow = write_model(tmp_path / "slow", 1, net="slow_to_evaluate")
    args = [slow, many, "--column", "path", "--device", "cpu", "--output"]
    predict(*args[:-3], "--output", tmp_path / f"whole.{suffix}")
    output = tmp_path / f"p.{suffix}"
    process = subprocess.Popen([sys.executable, "-m", "ddp_ft.predict", *map(str, [*args, output])])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(f"p.{suffix}.parts/*/0*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    said = call_on(3, "ddp_ft.predict", *args, output)
    assert "were there from an interrupted start" in said
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not (tmp_path / f"p.{suffix}.parts").exists()


def test_who_has_seen_enough_leaves(model, shapes, tmp_path):
    """As `| head -1` does, of more rows than a pipe holds: the loader's workers end, too."""
    images = sorted((shapes / "val").rglob("*.png"))
    table = write_csv(tmp_path / "t.csv", {"path": [str(images[k % len(images)]) for k in range(3000)]})
    os.mkfifo(tmp_path / "pipe")
    words = [model, table, "--column", "path", "--output", "-", "--workers", 1, "--device", "cpu"]
    process = Command("ddp_ft.predict", words, terminal=str(tmp_path / "pipe"))
    with (tmp_path / "pipe").open("rb") as reader:
        assert reader.readline().startswith(b"file,")
    assert process.wait(60) == EXIT_UNREAD
