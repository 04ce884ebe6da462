"""docs/own_code.md keeps its word: its code is checked and trained by its commands, and the options that it names take
code."""

import json
import shlex
from pathlib import Path

import pytest

from ddp_ft.config.schema import KEYS
from ddp_ft.evaluate import evaluate
from ddp_ft.train import train
from tests.support.runs import column, read
from tests.system.docs.test_guides import DOCS, commands_of, write_files_of

PAGE = (DOCS / "own_code.md").read_text(encoding="utf-8")
CHECKS = [command for command in commands_of("own_code.md") if "--dry-run" in command]
*DATA, TRAINING = [command for command in commands_of("own_code.md") if command not in CHECKS]
SMALL = shlex.split("--image-size 32 --epochs 1 --batch-size 8 --device cpu --workers 0 --set log.pictures=false")


@pytest.fixture
def folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files_of("own_code.md", tmp_path)
    (tmp_path / "pets").symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(command: str, *more: str) -> None:
    program, name, *words = shlex.split(command.replace("~/pets", "pets"))
    assert program == "ddp-ft"
    called = {"train": train, "evaluate": evaluate}[name]
    assert called.main([*words, *more], standalone_mode=False) == 0


def test_its_checks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each file, and what the page prints is what is printed."""
    for command in CHECKS:
        call(command)
    printed = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in printed} == {file.name for file in folder.glob("*.py")}
    assert printed[0] in PAGE.splitlines()


def test_its_training(folder: Path) -> None:
    call(TRAINING, *SMALL, "--set", "log.report=false")
    run = folder / "runs" / "own"
    assert 0 <= column(run, "worst_recall", "val")[0] <= 1
    used = {file.name for file in folder.glob("*.py")} - {"plates.py"}
    assert {name.partition(":")[0] for name in read(run, "plan.json")["code"]} == used


def test_its_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the report at the end of the run has its images."""
    training, evaluation = DATA
    call(training, *SMALL)
    capsys.readouterr()
    call(evaluation, "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["samples"] == 40
    assert "test[" in (folder / "runs" / "plates" / "report.html").read_text()


def test_its_options() -> None:
    """Its table has all keys that take code."""
    table = PAGE.partition("For all of them")[0]
    for key in KEYS.values():
        if "FILE.py" in key.help or key.code:
            assert f"`{key.flag} FILE.py:" in table or f"`--set {key.path}=FILE.py:" in table, key.path
