"""Files from elsewhere: weights, run folders, images, tables and names do nothing but what they are for."""

import json
import os
import pickle
import resource
import shutil
import struct
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddp_ft.cli.process import run_command
from ddp_ft.contracts import BadSample
from ddp_ft.data.image.decode import decode
from ddp_ft.evaluate import evaluate
from ddp_ft.predict import predict
from ddp_ft.train import train
from tests.support import nets
from tests.support.images import write_shapes
from tests.support.runs import arguments, read, train_here

TIMM = ["--model", "timm/resnet10t", "--weights", "none"]


class Payload:
    """What unpickling it would do: make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def write_payload(target: Path, trap: Path, torch_format: bool = True) -> None:
    if torch_format:
        torch.save({"state_dict": {"w": torch.zeros(2)}, "extra": Payload(trap)}, target)
    else:
        target.write_bytes(pickle.dumps(Payload(trap)))


def outcome(command, args, capsys) -> str:
    """What a command that must end with exit code 2 says; one message, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(command, [str(arg) for arg in args])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("Error: ") == 1 and "Traceback" not in told, told
    return told


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.tar"])
@pytest.mark.parametrize("torch_format", [True, False])
def test_pickled_weights_are_not_run(shapes, tmp_path, capsys, name, torch_format):
    write_payload(tmp_path / name, tmp_path / "trap", torch_format)
    message = outcome(train, arguments(shapes, tmp_path / "r", "--weights", tmp_path / name), capsys)
    assert name in message and not (tmp_path / "trap").exists() and not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "r"
    train_here(shapes, run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "r", symlinks=True))


def test_a_pickled_state_of_a_checkpoint_is_not_run(run, shapes, tmp_path, capsys):
    write_payload(run / "checkpoints/last/state.pt", tmp_path / "trap")
    outcome(train, arguments(shapes, run, "--extend", epochs=2), capsys)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("command", [evaluate, predict])
def test_pickles_in_a_run_folder_are_not_run(run, shapes, tmp_path, capsys, command):
    write_payload(run / "best/model.safetensors", tmp_path / "trap")
    assert "cannot be read" in outcome(command, use_of(command, run, shapes, tmp_path), capsys)
    assert not (tmp_path / "trap").exists()


def use_of(command, run, shapes, tmp_path):
    if command is predict:
        return [run, shapes / "val", "--output", tmp_path / "p.csv", "--device", "cpu"]
    return [run, "--data", shapes, "--device", "cpu"]


def change(run: Path, **values) -> None:
    file = run / "best/model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


CODE = """
import os
os.mkdir({trap!r})

def make(num_classes):
    from torch import nn
    return nn.Linear(1, num_classes)
"""


@pytest.mark.parametrize("command", [evaluate, predict])
def test_a_run_folder_brings_no_code_along(run, shapes, tmp_path, capsys, monkeypatch, command):
    trap = tmp_path / "trap"
    (run / "net.py").write_text(CODE.format(trap=str(trap)))
    monkeypatch.chdir(tmp_path)
    settings = json.loads((run / "best/model.json").read_text())["task_settings"]
    for values in (
        {"library": "file", "name": "r/net.py:make"},
        {"library": "file", "name": f"{tmp_path}/x/../r/net.py:make"},
        {"head": {"name": "r/best/../net.py:Head"}},
        {"task_settings": {**settings, "extra": "r/net.py:Metric"}},
        {"task_settings": {**settings, "loss": {**settings["loss"], "name": "r/net.py:Loss"}}},
    ):
        before = (run / "best/model.json").read_text()
        change(run, **values)
        assert "names code that lies inside it" in outcome(command, use_of(command, run, shapes, tmp_path), capsys)
        (run / "best/model.json").write_text(before)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("library", "name", "given"),
    [
        ("file", "os:system", {"command": "mkdir trap"}),
        ("file", "os:mkdir", {"num_classes": "trap"}),
        ("timm", "resnet10t", {"num_classes": 3, "checkpoint_path": "w.pth"}),
        ("timm", "resnet10t", {"num_classes": 3, "pretrained_cfg": {"file": "w.pth"}}),
        ("timm", "resnet10t", {"num_classes": 3, "pretrained": True}),
        ("torchvision", "resnet18", {"num_classes": 3, "weights": "DEFAULT"}),
        ("timm", "resnet10t", ["num_classes"]),
    ],
)
def test_arguments_of_model_json_only_say_how_it_is_built(
    run, shapes, tmp_path, capsys, monkeypatch, library, name, given
):
    write_payload(tmp_path / "w.pth", tmp_path / "trap")
    monkeypatch.chdir(tmp_path)
    change(run, library=library, name=name, arguments=given)
    message = outcome(evaluate, use_of(evaluate, run, shapes, tmp_path), capsys)
    assert (
        "for 'arguments', where an object" if isinstance(given, list) else "arguments that no model needs"
    ) in message
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("missing", ["library", "arguments", "preprocessing", "task", "classes", "precision"])
def test_a_damaged_model_json(run, shapes, tmp_path, capsys, missing):
    file = run / "best/model.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != missing}))
    assert missing in outcome(evaluate, use_of(evaluate, run, shapes, tmp_path), capsys)


def write_bomb(file: Path, side: int = 50000) -> Path:
    """A PNG of 200 bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10000))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return file


def test_a_decompression_bomb_is_found_before_it_takes_memory(tmp_path):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for side in (50000, 10000):
        with pytest.raises(BadSample, match=r" \d+ pixels, more than the limit of 89478485"):
            decode(write_bomb(tmp_path / "bomb.png", side))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; decoded it has 7.5 GB
    assert time.monotonic() - start < 5


def test_a_bomb_among_the_images_is_damage(tmp_path, capsys):
    data = write_shapes(tmp_path / "data")
    write_bomb(data / "train/disc/03.png")
    message = outcome(train, arguments(data, tmp_path / "r"), capsys)
    assert "1 of 30 images cannot be read" in message
    assert "train/disc/03.png: 2500000000 pixels, more than the limit of 89478485" in message
    train_here(data, tmp_path / "skipping", "--set", "data.on_error=skip")
    assert read(tmp_path / "skipping", "summary.json")["status"] == "done"


def test_formats_that_run_programs_are_no_images(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin/gs"
    ghostscript.write_text(f"#!/bin/sh\nmkdir {tmp_path}/trap\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    Image.new("RGB", (20, 20)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(BadSample, match="not an image"):
        decode(tmp_path / "x.png")
    assert not (tmp_path / "trap").exists()


def test_a_pipe_among_the_images_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadSample, match="pipe"):
        decode(tmp_path / "x.png")


def test_paths_of_a_table(shapes, tmp_path, capsys):
    """Relative to the table, detours and absolute ones too; what is no image is never shown."""
    (tmp_path / "table").mkdir()
    (tmp_path / "secret.txt").write_text("the password")
    rows = [f"{shapes}/train/{kind}/0{k}.png,{kind}" for kind in ("disc", "square") for k in range(6)]
    table = tmp_path / "table/t.csv"
    table.write_text("\n".join(["image,label", *rows, "../secret.txt,disc", ""]))
    message = outcome(train, arguments(table, tmp_path / "r"), capsys)
    assert "secret.txt: not an image" in message and "password" not in message
    for path in ("/dev/zero", "/proc/self/environ\0", ".."):
        table.write_text("\n".join(["image,label", *rows, f"{path},disc", ""]))
        assert "are not there" in outcome(train, arguments(table, tmp_path / "r2"), capsys)
    table.write_text("\n".join(["image,label", *rows, ""]))
    train_here(table, tmp_path / "ok", "--model", f"{nets.THIS_FILE}:plain")


def test_an_archive_is_not_opened(shapes, tmp_path, capsys):
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", shapes)
    assert "is a file; expected a folder or a table" in outcome(train, arguments(archive, tmp_path / "r"), capsys)


EVIL = ("../../up", "a/b", "new\nline", "\x1b[31mred", "=1+1", "no\udcffutf8")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_labels_never_become_paths(shapes, tmp_path, capsys):
    """Of a table: in classes.json, model.json, TensorBoard and predictions, and nowhere else."""
    (tmp_path / "in").mkdir()
    labels = EVIL[:-1]  # a table is UTF-8
    rows = [f'{shapes}/train/disc/0{k}.png,"{label}"' for label in labels for k in range(5)]
    (tmp_path / "in/t.csv").write_text("\n".join(["image,label", *dict.fromkeys(rows), ""]), encoding="utf-8")
    before = everything(tmp_path)
    capsys.readouterr()
    train_here(tmp_path / "in/t.csv", tmp_path / "in/r")
    assert "\x1b[31m" not in capsys.readouterr().out
    assert sorted(read(tmp_path / "in/r", "classes.json")) == sorted(labels)
    predict_to(tmp_path / "in/r", shapes / "val/disc", tmp_path / "in/p.csv")
    new = everything(tmp_path) - before
    assert {path for path in new if not path.startswith("in/r")} == {"in/p.csv"}


def test_names_of_files_and_folders_may_hold_anything(tmp_path, capsys):
    data = write_shapes(tmp_path / "in/data", train=6, val=1)
    source = data / "train/square"
    for name in ("new\nline", "\x1b[31mred", "=1+1", "no\udcffutf8"):
        shutil.copy(source / "00.png", source / f"{name}.png")
        (source / f"{name} torn.png").write_bytes((source / "00.png").read_bytes()[:70])
        shutil.copytree(data / "train/disc", data / f"train/{name}")
    before = everything(tmp_path)
    capsys.readouterr()
    options = ["--set", "data.on_error=skip", "--set", "data.max_damaged=0.9", "--val-split", 0.3]
    for epochs in (1, 2):
        train_here(data / "train", tmp_path / "in/r", *options, "--extend", epochs=epochs)
    told = capsys.readouterr().out
    assert "\x1b[31m" not in told and "red torn.png" in told
    lines = (tmp_path / "in/r/quarantine.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and all(len(line.split("\t")) == 3 for line in lines)
    split = read(tmp_path / "in/r", "split.json")
    assert {"square/new\nline.png", "square/no\udcffutf8.png"} <= {*split["train"], *split["val"]}
    assert "no\udcffutf8" in read(tmp_path / "in/r", "classes.json")
    predict_to(tmp_path / "in/r", source, tmp_path / "in/p.csv")
    assert "no\\udcffutf8" in (tmp_path / "in/p.csv").read_text(encoding="utf-8")
    new = everything(tmp_path) - before
    assert {path for path in new if not path.startswith("in/r")} == {"in/p.csv"}


def predict_to(run: Path, images: Path, output: Path) -> None:
    predict.main([str(run), str(images), "--output", str(output), "--device", "cpu"], standalone_mode=False)


def test_errors_name_odd_files_in_one_line(tmp_path, capsys):
    data = write_shapes(tmp_path / "data", train=3, val=1)
    (data / "train/disc/new\nline\x1b[31m.png").write_text("torn")
    message = outcome(train, arguments(data, tmp_path / "r"), capsys)
    assert "train/disc/new\\nline\\x1b[31m.png: not an image" in message
