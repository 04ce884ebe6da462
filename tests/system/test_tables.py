"""Runs on tables, from training to prediction, on one process and on several."""

import csv
import json

import pytest

from tests.support.marks import slowly
from tests.support.runs import call_on, column, read, train_here, train_on
from tests.support.tables import write_shape_table

SET = "--set"
KINDS = {
    "single-label": ["data.target=label"],
    "multi-label": ["data.target=tags"],
    "regression": ["data.target=area"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_shape_table(tmp_path_factory.mktemp("table") / "table.csv")


def options(task):
    return [part for setting in KINDS[task] for part in (SET, setting)] + ["--task", "auto", "--lr", 0.01]


@pytest.mark.parametrize("task", KINDS)
def test_a_table_is_trained_on_evaluated_and_predicted(table, tmp_path, task):
    run = tmp_path / "r"
    train_here(table, run, *options(task), SET, "data.group=patient", SET, "data.weight=w", epochs=2)
    assert read(run, "best/model.json")["task"] == task
    train_here(table, run, *options(task), SET, "data.group=patient", SET, "data.weight=w", "--extend", epochs=3)
    val = read(run, "summary.json")["val"]
    renamed = table.with_name("renamed.csv")
    renamed.write_text(table.read_text().replace("image,", "picture,", 1))
    for world_size, data, more in ((1, renamed, (SET, "data.image=picture")), (2, table, ())):
        told = json.loads(call_on(world_size, "ddp_ft.evaluate", run, "--data", data, "--device", "cpu", *more))
        assert {name: told[name] for name in val} == val
    call_on(2, "ddp_ft.predict", run, table.parent / "images", "--output", tmp_path / "p.csv", "--device", "cpu")
    with (tmp_path / "p.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 36 and all(not row["error"] for row in rows)
    assert {"single-label": "prob_disc", "multi-label": "prob_big", "regression": "area"}[task] in rows[0]


@pytest.mark.parametrize("task", ["regression", *slowly("single-label", "multi-label")])
def test_same_curve_on_any_number_of_processes(table, tmp_path, task):
    more = [*options(task), SET, "data.weight=w", "--sampling", "weighted"]
    train_here(table, tmp_path / "w1", *more, epochs=2)
    for world_size in (2, 3):
        train_on(world_size, table, tmp_path / f"w{world_size}", *more, epochs=2)
        for split in ("train", "val"):
            alone = column(tmp_path / "w1", "loss", split)
            assert column(tmp_path / f"w{world_size}", "loss", split) == pytest.approx(alone, rel=1e-4)


def test_folds_share_out_the_table(table, tmp_path):
    held_back = []
    for fold in (1, 2, 3):
        train_here(table, tmp_path / str(fold), *options("single-label"), SET, f"data.fold={fold}/3", "--max-steps", 1)
        held_back += read(tmp_path / str(fold), "split.json")["val"]
    assert len(held_back) == len(set(held_back)) == 36
