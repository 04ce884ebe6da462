"""A run that an earlier version began: its checkpoint is gone on with, and its model is loaded.

`earlier/` holds the images, the model, what a start wrote that was killed after step 8 of 12, and the rows of a start
that was not; `scores.json` is what best/ said of data/val. Version 0.1.0 made it with the options below; the folders of
logs are left out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ddp_ft
from ddp_ft.train import train
from tests.support.runs import read, rows

EARLIER = Path(__file__).parent / "earlier"
OPTIONS = [
    "--data", "data", "--model", "net.py:net", "--weights", "none", "--recipe", "full", "--image-size", "24",
    "--epochs", "4", "--batch-size", "6", "--lr", "0.02", "--device", "cpu", "--workers", "0", "--patience", "9",
    "--set", "ema.decay=0.9", "--set", "optim.name=sgd", "--set", "freeze.schedule={0: backbone, 2: none}",
    "--set", "log.every_steps=1", "--set", "log.pictures=false", "--set", "log.report=false",
    "--set", "checkpoint.every_steps=1", "--run-dir", "run",
]  # fmt: skip
# Another processor rounds otherwise.
ROUNDING = 1e-4


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(EARLIER, tmp_path / "earlier", symlinks=True)
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


def expected(split: str) -> list[dict[str, Any]]:
    found = map(json.loads, (EARLIER / "expected.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


def test_the_rest_is_as_it_would_have_been(earlier, capsys):
    assert [row["step"] for row in rows(earlier / "run")][-1] == 8
    train.main(OPTIONS, standalone_mode=False)
    assert "continues after step 8 of" in capsys.readouterr().out
    for split in ("train", "val"):
        wanted, found = expected(split), rows(earlier / "run", split)
        assert len(found) == len(wanted)
        for old, new in zip(wanted, found, strict=True):
            assert {name: new[name] for name in old} == pytest.approx(old, rel=ROUNDING, nan_ok=True)
    assert read(earlier / "run", "summary.json")["status"] == "done"


def test_its_best_model_is_loaded(earlier):
    images = sorted(Path("data/val").rglob("*.png"))
    scores = {str(file): made.probabilities for file, made in zip(images, ddp_ft.load("run/best")(images), strict=True)}
    wanted = json.loads(Path("scores.json").read_text())
    assert scores.keys() == wanted.keys()
    for file, values in wanted.items():
        assert scores[file] == pytest.approx(values, rel=ROUNDING)
