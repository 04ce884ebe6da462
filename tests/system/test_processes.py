"""`--processes`: the command starts its own ranks, prints what they print, and ends as they do."""

import json
import os
import signal

import pytest
from click.testing import CliRunner

from ddp_ft.errors import UserError
from ddp_ft.train import train
from tests.support import images
from tests.support.commands import Command, run_module
from tests.support.runs import arguments, column, read, train_here, wait_for

TWO = ["--processes", 2, "--workers", 0]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_stop_request_reaches_the_ranks_and_is_the_exit_code(shapes, tmp_path):
    args = [*arguments(shapes, tmp_path / "r", epochs=1600), *TWO]
    process = Command("ddp_ft.train", args, ENVIRONMENT, merged=True)
    wait_for(tmp_path / "r/checkpoints/last", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(60)
    assert process.returncode == 75 and read(tmp_path / "r", "summary.json")["status"] == "stopped", output
    assert "Traceback" not in output and "elastic" not in output.lower() and output.count("Stopped at step") == 1


@pytest.mark.slow
def test_the_result_is_that_of_one_process(shapes, tmp_path):
    done = run_module("ddp_ft.train", *arguments(shapes, tmp_path / "r", epochs=2), *TWO, env=ENVIRONMENT)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    train_here(shapes, tmp_path / "alone", epochs=2)
    assert column(tmp_path / "r", "loss") == pytest.approx(column(tmp_path / "alone", "loss"), rel=1e-4)
    scored = run_module("ddp_ft.evaluate", tmp_path / "r", "--data", shapes, "--processes", 2, env=ENVIRONMENT)
    loss = read(tmp_path / "r", "summary.json")["val"]["loss"]
    assert json.loads(scored.stdout)["loss"] == pytest.approx(loss, rel=1e-5), scored.stderr
    table = tmp_path / "p.csv"
    args = [tmp_path / "r", shapes / "val", "--output", table, "--processes", 3]
    assert run_module("ddp_ft.predict", *args, env=ENVIRONMENT).returncode == 0
    assert len(table.read_text().splitlines()) == 1 + len(list((shapes / "val").rglob("*.png")))


@pytest.mark.slow
def test_what_a_rank_finds_is_one_message(tmp_path):
    data = images.write_shapes(tmp_path / "data")
    (data / "train/disc/03.png").write_text("no image")
    done = run_module("ddp_ft.train", *arguments(data, tmp_path / "r"), *TWO, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stderr.count("Error: ") == 1, done.stderr
    assert "disc/03.png" in done.stderr and "Traceback" not in done.stderr and "elastic" not in done.stderr


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_a_number_that_is_none(given):
    done = CliRunner().invoke(train, ["--data", "x", "--processes", given])
    assert done.exit_code == 2 and f"{given!r} is neither a number from 1 on nor auto" in done.output


def test_under_torchrun_it_is_a_mistake(shapes, tmp_path, monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"without torchrun, which has started 2"):
        train_here(shapes, tmp_path / "r", "--devices", "4")


def test_one_process_is_this_one(shapes, tmp_path):
    assert train_here(shapes, tmp_path / "r", "--processes", 1) == 0
    assert read(tmp_path / "r", "plan.json")["world_size"] == 1
