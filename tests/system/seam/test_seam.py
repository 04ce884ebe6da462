"""A task, a library, a source, a tracker and a command are one file and one line each, and need not be of images.

The toys: rows of numbers, as many in each as there are, and a mark for each number.
"""

import csv
import io
from pathlib import Path

import pytest

from ddp_ft.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.runs import column, read
from tests.system.seam import registering
from tests.system.seam.registering import call, call_alone, call_and_die, write_rows

ROWS = 70


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "data.rows", ROWS)


def on_ranks(world_size: int, module: str, *args: object) -> str:
    return run_ranks(world_size, call, module, list(args), connected=False)[0]


def options(rows: Path, run: Path, *more: object) -> list[object]:
    base = ["--data", rows, "--model", "toy/net", "--weights", "none", "--run-dir", run, "--epochs", 4]
    often = ["--set", "log.every_steps=1", "--set", "checkpoint.every_steps=5"]
    return [*base, "--batch-size", 8, "--lr", 0.03, "--device", "cpu", "--workers", 0, *often, *more]


def plain(rows: Path, run: Path, *more: object) -> list[object]:
    """Without what is drawn and written."""
    return options(rows, run, "--set", "log.pictures=false", "--set", "log.report=false", *more)


@pytest.fixture(scope="module")
def alone(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of one process, with all that it draws and writes."""
    run = tmp_path_factory.mktemp("alone") / "r"
    told = on_ranks(1, "ddp_ft.train", *options(rows, run, "--track", "json", "--set", "log.graph=true"))
    advice = ("weights: ", "learning rate: ", "steps: ")
    others = [line for line in told.splitlines() if line.startswith("Warning") and not line[9:].startswith(advice)]
    assert not others, others
    return run


def test_it_learns(alone: Path) -> None:
    summary = read(alone, "summary.json")
    assert summary["status"] == "done" and summary["val"]["accuracy"] > 0.9
    assert read(alone, "plan.json")["task"] == "mark-rows"
    model = read(alone, "best/model.json")
    assert model["preprocessing"] == {"kind": "rows", "scale": 10.0}
    assert model["arguments"] == {"num_classes": 1}, "as many outputs as the task has, not as there are names"


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_curve_on_any_number_of_processes(rows: Path, alone: Path, tmp_path: Path, world_size: int) -> None:
    """Whatever padding a process's share needs, and with micro-batches too."""
    on_ranks(world_size, "ddp_ft.train", *plain(rows, tmp_path / "r", "--set", "train.micro_batch=2"))
    assert column(tmp_path / "r", "loss") == pytest.approx(column(alone, "loss"), rel=1e-4, abs=1e-6)
    assert column(tmp_path / "r", "loss", "val") == pytest.approx(column(alone, "loss", "val"), abs=3e-5)
    assert column(tmp_path / "r", "accuracy", "val") == column(alone, "accuracy", "val")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_ends_with_the_same_bytes(rows: Path, tmp_path: Path, world_size: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    on_ranks(world_size, "ddp_ft.train", *plain(rows, whole))
    with pytest.raises(RuntimeError, match="ended without an answer"):
        run_ranks(world_size, call_and_die, "ddp_ft.train", plain(rows, cut), 160 // world_size, connected=False)
    assert list((cut / "checkpoints").glob("step_*")) and not (cut / "summary.json").exists()
    on_ranks(world_size, "ddp_ft.train", *plain(rows, cut))
    assert (cut / "best/model.safetensors").read_bytes() == (whole / "best/model.safetensors").read_bytes()
    for split in ("train", "val"):
        assert column(cut, "loss", split) == column(whole, "loss", split)


def test_predictions_of_uneven_length_are_gathered_from_any_number(rows: Path, alone: Path, tmp_path: Path) -> None:
    marks = [line.split("|")[1] for line in rows.read_text().splitlines()]
    metrics, tables = set(), set()
    for world_size in (1, 2, 3):
        metrics.add(on_ranks(world_size, "ddp_ft.evaluate", alone, "--data", rows, "--split", "all"))
        output = tmp_path / f"{world_size}.csv"
        on_ranks(world_size, "ddp_ft.predict", alone, "--also", alone, rows, "--output", output, "--device", "cpu")
        tables.add(output.read_text())
    [found], [table] = metrics, tables
    assert f'"samples": {ROWS}' in found
    told = list(csv.DictReader(io.StringIO(table)))
    assert [row["file"] for row in told] == [f"{rows}:{number}" for number in range(1, ROWS + 1)]
    pairs = [
        pair
        for row, right in zip(told, marks, strict=True)
        for pair in zip(row["marks"].split(), right.split(), strict=True)
    ]
    assert sum(one == other for one, other in pairs) / len(pairs) > 0.9


def test_a_damaged_row_is_named(rows: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.rows"
    broken.write_text(rows.read_text() + "1 two 3|0 1 0\n")
    with pytest.raises(UserError, match=r"1 of .* cannot be read") as caught:
        on_ranks(2, "ddp_ft.train", *plain(broken, tmp_path / "r", "--val-split", 0.05))
    assert f"broken.rows:{ROWS + 1}: could not convert string to float" in str(caught.value)


def test_what_draws_charts_and_pages_goes_without(rows: Path, alone: Path) -> None:
    assert "mark-rows" in (alone / "report.html").read_text()
    assert "accuracy" in (alone / "model_card.md").read_text()
    on_ranks(1, "ddp_ft.doctor", *plain(rows, alone.with_name("new")))
    on_ranks(1, "ddp_ft.cli.replay", alone, "3")
    assert "r " in on_ranks(1, "ddp_ft.cli.runs", alone.parent)


def test_what_is_for_images_says_so(rows: Path, alone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows"):
        export = [alone, "--format", "torch_export", "--output", tmp_path / "m.pt2"]
        run_ranks(1, call_alone, "ddp_ft.export", export, connected=False)
    with pytest.raises(UserError, match="images"):
        on_ranks(1, "ddp_ft.predict", alone, rows, "--tta", "flip", "--output", tmp_path / "p.csv")
    with pytest.raises(UserError, match="samples of the kind 'rows'"):
        on_ranks(1, "ddp_ft.train", *plain(rows, tmp_path / "r"), "--model", "timm/test_resnet")


@pytest.mark.parametrize(("but", "said"), [("PROCESSORS", "'rows', which is not known"), ("ARGUMENTS", "'depth'")])
def test_what_could_not_be_read_back_is_refused_before_training(
    rows: Path, tmp_path: Path, but: str, said: str
) -> None:
    """A line that was forgotten, or an argument that no model.json may have, would show when all is trained."""
    with pytest.raises(UserError, match=said):
        run_ranks(1, call, "ddp_ft.train", plain(rows, tmp_path / "r"), but, connected=False)
    assert not (tmp_path / "r").exists()


def test_the_service_gets_rows(alone: Path) -> None:
    lines = (alone / "trackers/lines.txt").read_text().splitlines()
    assert len([line for line in lines if line.startswith("train ")]) == len(column(alone, "loss"))
    assert lines[-1].startswith("finished ")


def test_the_command_is_there(rows: Path) -> None:
    assert run_ranks(1, registering.list_and_count, rows, connected=False) == [
        ("How many rows a file has.", f"{ROWS} rows\n")
    ]
