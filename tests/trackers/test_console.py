"""What a run says on a terminal, in a file, and in its logs."""

import io
import os
import pty
import re
import select
import shutil
import time

import pytest
from rich.console import Console

from ddp_ft.cli.runs import read_run
from ddp_ft.trackers.console import Live, Outlook, Plain, make_console
from tests.support.commands import Command
from tests.support.runs import arguments, train_here, train_on
from tests.system.faults.forks import ForkedJob


def test_on_a_terminal_there_is_a_bar_and_evaluations_stay(shapes, tmp_path):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    args = arguments(shapes, tmp_path / "r", epochs=2)
    process = Command("ddp_ft.train", args, environment, terminal=os.ttyname(slave))
    output = b""
    while select.select([master], [], [], 0.1)[0] or process.poll() is None:
        output += os.read(master, 65536) if select.select([master], [], [], 0)[0] else b""
    for side in (master, slave):
        os.close(side)
    text = output.decode()
    assert process.wait(timeout=60) == 0, text
    assert "━" in text
    assert re.search(r"step \d/8 .*left: epoch 0:00:0\d  run 0:00:0\d", text), text
    assert "no evaluation yet" in text and re.search(r"best accuracy 0\.\d{4} \(epoch 1\)", text), text
    assert "saves in 0:00:0" in text and "evaluating on 12 images" in text
    assert text.count("val    epoch") == 2 and "train  epoch" not in text
    assert "train  epoch 2/2  step 8/8" in (tmp_path / "r/logs/rank_0.txt").read_text()


def test_how_much_is_said_and_what_is_logged(shapes, tmp_path):
    """Quiet runs print nothing but what is wrong; each rank's log has all of it."""
    quiet = train_on(2, shapes, tmp_path / "quiet", "--quiet").splitlines()
    assert quiet and all(line.startswith("Warning: ") for line in quiet)
    assert train_on(1, shapes, tmp_path / "error", "--log-level", "error") == ""
    loud = train_on(1, shapes, tmp_path / "debug", "--log-level", "debug")
    assert "evaluating on 12 images" in loud and "train  epoch 1/1  step 4/4" in loud
    log = (tmp_path / "quiet/logs/rank_0.txt").read_text()
    assert "INFO train  epoch 1/1  step 4/4" in log and "DEBUG evaluating on 12 images" in log and "run folder" in log
    assert (tmp_path / "quiet/logs/rank_1.txt").exists()


def test_what_ends_a_run_is_in_the_logs(shapes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for file in (data / "train").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(Exception, match=r"\.png"):
        train_here(data, tmp_path / "r")
    log = (tmp_path / "r/logs/rank_0.txt").read_text()
    assert "ERROR" in log and ".png" in log
    listed = read_run(tmp_path / "r", tmp_path)
    assert listed.state == "failed" and "cannot be read" in listed.failure


def test_a_row_of_the_test_set_is_of_the_best_model():
    stream = io.StringIO()
    plain = Plain(Console(file=stream))
    plain.log("test", 40, 4.0, {"accuracy": 0.75})
    plain.log("val", 40, 4.0, {"accuracy": 0.5})
    test, val = stream.getvalue().splitlines()
    assert test == "test   best model  accuracy 0.7500" and "step 40" in val


def test_the_time_left_counts_what_a_step_takes_with_evaluations():
    plain = Plain(Console(file=io.StringIO(), width=80))
    plain.start(0, 100, 10, lambda: Outlook("", 1, 0.0, step_seconds=2.0))
    plain.started_at -= 1000  # what the first steps took does not count any more
    assert plain.seconds_left(50, 100) == 100.0


def test_lines_fit_eighty_columns():
    stream = io.StringIO()
    plain = Plain(Console(file=stream, width=300))
    plain.start(0, 123450, 1235, lambda: Outlook("", 1, 0.0))
    plain.started_at -= 3600
    speed = {"images_per_second": 12345.6, "data_wait_share": 0.25, "grad_norm": 1.0, "lr/head": 0.1}
    plain.log("train", 12345, 9.9, {"loss": 0.7} | speed)
    metrics = dict.fromkeys(("loss", "accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "auroc", "ece"), 0.5)
    plain.log("val", 12350, 10.0, metrics)
    plain.log("val", 12350, 10.0, metrics | {f"ema_{name}": 0.625 for name in metrics})
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("train  epoch 10/100  step 12345/123450  loss 0.7000") and "grad" not in lines[0]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["train", "val", "val"]
    rest = "\n".join(lines[lines.index("val    epoch 10/100  step 12350/123450") :])
    assert all(name in rest for name in metrics) and rest.count("0.6250") == rest.count("0.5000") == len(metrics)


def test_a_speed_that_is_not_measured_yet_is_not_printed():
    stream = io.StringIO()
    plain = Plain(Console(file=stream))
    for measured in ({}, {"images_per_second": 5.5, "data_wait_share": 0.0}):
        plain.log("train", 3, 1.0, {"loss": 0.7} | measured)
    first, later = stream.getvalue().splitlines()
    assert "images" not in first and "5.5 images/s" in later and "wait" not in later


def test_the_display_has_what_one_wants_to_know():
    stream = io.StringIO()
    live = Live(Console(file=stream, force_terminal=True, width=150))
    live.start(90, 100, 40, lambda: Outlook("accuracy 0.9000 (epoch 2)", 100, time.monotonic() + 30))
    live.started_at -= 5  # as if the first step of this start had taken 5 s
    live.log("train", 91, 2.3, {"loss": 0.25, "images_per_second": 42.0, "data_wait_share": 0.08, "lr/head": 0.1})
    live.drawn_at = 0.0
    live.advance(91)
    shown = stream.getvalue()
    assert "epoch 3/3  step 91/100" in shown and "left: epoch 0:00:45  run 0:00:45" in shown
    assert "loss 0.2500  ·  42 images/s  ·  waits 8%  ·  best accuracy 0.9000 (epoch 2)" in shown
    assert re.search(r"saves in 0:00:(29|30)", shown), shown
    live.stream.width, live.drawn_at = 80, 0.0
    live.advance(91)
    assert "epoch 2)" in stream.getvalue()[len(shown) :] and "saves" not in stream.getvalue()[len(shown) :]
    live.close()


def test_training_goes_on_when_the_reader_of_its_output_leaves(shapes, tmp_path):
    """As of `train ... | head`; the logs have everything."""
    job = ForkedJob(1, arguments(shapes, tmp_path / "r"))
    job.leave()
    assert job.end()[0] == [0]
    assert "INFO train  epoch 1/1  step 4/4" in (tmp_path / "r/logs/rank_0.txt").read_text()
    assert (tmp_path / "r/summary.json").exists()


def test_names_in_colons_and_brackets_are_printed_as_they_are(capsys):
    console = make_console(is_main=True)
    console.table("run", {"data": "own.py:five: 24 train"})
    console.grid("[red]", ["[b]"], [["class :cat:"]])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("own.py:five: 24", "[red]", "[b]", ":cat:")), printed
