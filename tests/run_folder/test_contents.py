"""Small files of a run that are damaged: named, with how to go on, and made anew where that can be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_ft.cli.runs import read_run as read_row
from ddp_ft.data.bad_samples.quarantine import FILE as QUARANTINE
from ddp_ft.data.bad_samples.quarantine import read_quarantine
from ddp_ft.errors import UserError
from ddp_ft.inference.evaluation_data import open_source
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.reporting.facts import read_run
from ddp_ft.run_folder.bad_batches import BadBatch, read_bad_batch, write_bad_batch
from ddp_ft.run_folder.contents import read_rows
from ddp_ft.run_folder.folder import FILES, FOLDERS, RunFolder
from ddp_ft.run_folder.lease import Holder, read_lease
from ddp_ft.run_folder.recognise import OF_A_RUN
from ddp_ft.slurm.job import read_mark
from ddp_ft.slurm.requeue import History
from ddp_ft.training.plan import read_plan
from tests.support.finished import write_finished
from tests.support.runs import read, rows, train_here

RECORD = "bad_batches/step_00000003/batch.json"
CPU = torch.device("cpu")
# Who reads each file. A list of runs has a row for every run.
READERS: dict[str, list[Callable[[Path], Any]]] = {
    "plan.json": [read_run, lambda run: read_plan(RunFolder(run))],
    "summary.json": [read_run],
    "classes.json": [read_run],
    "split.json": [read_run, lambda run: open_source(run, run, None, load_trained(run, CPU))],
    "config.yaml": [read_run, lambda run: RunFolder(run).stored_config()],
    "best/model.json": [read_run, lambda run: load_trained(run, CPU), lambda run: load_trained(run / "best", CPU)],
    "lease.json": [lambda run: read_lease(run, strict=True)],
    RECORD: [lambda run: read_bad_batch(run, 3)],
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "zeros": lambda old: bytes(len(old)),
    "half": lambda old: old[: len(old) // 2],
    "other type": lambda old: b"3\n",
    "no text": lambda old: b"\xff\xfe",
    "deep": lambda old: b"[" * 5_000,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_finished(tmp_path_factory.mktemp("contents") / "run")
    RunFolder(run).write_json("lease.json", asdict(Holder("here", pid=3)))
    batch = BadBatch(3, 0.2, [], 0, [1], 1, None, "fp32", {"all": 1e-4}, 1.0, float("nan"), 1.0)
    write_bad_batch(run, batch, {})
    return run


def refusal(reader: Callable[[Path], Any], run: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        reader(run)
    return caught.value


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "empty") for name in READERS),
        *((name, "half") for name in READERS if name.endswith("json")),  # half of a YAML file may be one too
        *(("plan.json", each) for each in DAMAGES),
    ],
)
def test_a_damaged_file_is_named_with_how_to_go_on(finished: Path, tmp_path: Path, name: str, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    for reader in READERS[name]:
        error = refusal(reader, run)
        assert name in error.message and "It holds" in error.hint, (error.message, error.hint)
    row = read_row(run, tmp_path)
    assert row.state == "done" or name in row.problem


@pytest.mark.parametrize("key", ["world_size", "micro_batch", "loss", "samples"])
def test_a_record_of_a_step_that_lacks_a_key(finished: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / RECORD
    content = json.loads(file.read_text())
    for changed in ({**content, key: {}}, {name: content[name] for name in content if name != key}):
        file.write_text(json.dumps(changed))
        assert f"'{key}'" in refusal(READERS[RECORD][0], tmp_path / "run").message


def test_wrong_types_within_a_file(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for name, key in (("plan.json", "total_steps"), ("summary.json", "epoch"), ("best/model.json", "arguments")):
        old = read(tmp_path / "run", name)
        RunFolder(tmp_path / "run").write_json(name, {**old, key: "many"})
        assert key in refusal(read_run, tmp_path / "run").message
        RunFolder(tmp_path / "run").write_json(name, old)
    assert read_run(tmp_path / "run").plan.total_steps == 12


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    row = {"step": 1, "epoch": 0.5, "split": "train", "time": 3.0}
    lines = ["[1]", "{", json.dumps(row), json.dumps({**row, "split": None}), '{"step": 2}', "[" * 5_000, "é"]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\n" + json.dumps(row).encode())
    assert read_rows(tmp_path / "metrics.jsonl") == [row]
    (tmp_path / QUARANTINE).write_bytes(b"junk\na.png\ttrain\tcut\tshort\n\xff\n")
    assert read_quarantine(tmp_path) == [["a.png", "train", "cut\tshort"]]


def test_damaged_marks_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text('{"pid": "many"}')
    assert read_lease(tmp_path) is None and read_mark(tmp_path, History()).lease is None


def test_what_is_in_the_way_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    for name in (*FILES, *FOLDERS):
        run = tmp_path / f"of_{name}"
        (run / name).mkdir(parents=True) if name in FILES else (run.mkdir(), (run / name).touch())
        error = refusal(lambda run: RunFolder(run).create(), run)
        assert str(run / name) in error.message and error.hint


def test_training_makes_anew_what_it_can(shapes: Path, tmp_path: Path) -> None:
    """The plan, the summary, rows that are none, and best/ from its checkpoint, of the same bytes."""
    run = tmp_path / "run"
    assert train_here(shapes, run) == 0
    before = {name: (run / "best" / name).read_bytes() for name in ("model.json", "model.safetensors")}
    for name in ("plan.json", "summary.json", "best/model.safetensors"):
        (run / name).write_bytes((run / name).read_bytes()[:40])
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write("[]\n{\n")
    assert train_here(shapes, run) == 0
    assert {name: (run / "best" / name).read_bytes() for name in before} == before
    assert read(run, "summary.json")["status"] == "done" and read(run, "plan.json")["total_steps"] == 4
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    assert {each.name for each in run.iterdir() if each.is_dir()} <= OF_A_RUN  # else they would count as data


def test_a_best_model_that_is_lost_is_taken_anew(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_here(shapes, run) == 0
    shutil.rmtree(run / "best")
    for score in run.glob("checkpoints/*/score.json"):
        score.parent.rename(score.parent.with_name(score.parent.name.replace("4", "3")))
    assert train_here(shapes, run) == 0
    assert load_trained(run, CPU).names and read(run, "summary.json")["best_step"] == 4
