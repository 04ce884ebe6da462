"""Paths and classes with any characters, the whole way: train, predict, evaluate, list; and tables from Windows."""

import csv
import json

import pytest
from PIL import Image

from ddp_ft.cli.runs import runs
from tests.support.images import write_shapes
from tests.support.runs import call_on, read, train_here, train_on

ODD = {
    "disc": '-Straße, „ölig“ "x" it\'s\n50 % 🐈',
    "square": "a∕b\\c;|=[0]{1}$HOME `ls`",
    "stripes": " 日本語 --lr=\t#",
}


@pytest.fixture
def odd_data(tmp_path):
    folder = write_shapes(tmp_path / "my pictüres -- 日本", train=4, val=2)
    for part in ("train", "val"):
        for plain, odd in ODD.items():
            (folder / part / plain).rename(folder / part / odd)
        first = next((folder / part / ODD["disc"]).iterdir())
        first.rename(first.with_name('-a, "image"\nof Ähm.png'))
    return folder


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_whole_way(odd_data, tmp_path, capsys, world):
    from ddp_ft.evaluate import evaluate
    from ddp_ft.predict import predict

    run, table = tmp_path / "rün of mine", tmp_path / "out püt.csv"
    metrics = tmp_path / "métrics.json"

    def call(command, *arguments):
        if world == 1:
            command.main([str(each) for each in arguments], standalone_mode=False)
        else:
            call_on(world, command.callback.__module__, *arguments)

    start = train_here if world == 1 else lambda *args, **options: train_on(world, *args, **options)
    start(odd_data, run, epochs=1)
    assert read(run, "classes.json") == sorted(ODD.values())
    call(predict, run, odd_data / "val", "--output", table)
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 and {row["class"] for row in rows} <= set(ODD.values())
    assert sorted(row["file"] for row in rows) == sorted(str(file) for file in (odd_data / "val").rglob("*.png"))
    call(evaluate, run, "--data", odd_data, "--output", metrics)
    expected = read(run, "summary.json")["val"]
    measured = json.loads(metrics.read_text())
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    capsys.readouterr()
    runs.main([str(tmp_path)], standalone_mode=False)
    assert "rün of mine" in capsys.readouterr().out


def test_tables_from_windows(shapes, tmp_path):
    """Backslashes, CRLF and a byte order mark; labels with umlauts."""
    for number, file in enumerate(sorted((shapes / "train").rglob("*.png"))[::3]):
        copy = tmp_path / "bilder" / file.parent.name / f"ä {number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(copy)
    copies = sorted((tmp_path / "bilder").rglob("*.png"))
    names = ["\\".join(copy.relative_to(tmp_path).parts) for copy in copies]
    lines = [f"{name};Größe {copy.parent.name}" for name, copy in zip(names, copies, strict=True)]
    lines = ["image;label", *lines, ""]
    (tmp_path / "t.csv").write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    train_here(tmp_path / "t.csv", tmp_path / "r", "--val-split", 0.4)
    assert read(tmp_path / "r", "classes.json") == ["Größe disc", "Größe square", "Größe stripes"]
