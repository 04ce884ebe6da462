"""`ddp-ft kfold`: a run for each fold, their mean, and their models as an ensemble."""

import csv
import json
import os
import shutil
import signal
import statistics
from collections import Counter
from pathlib import Path

import pytest

import ddp_ft
from ddp_ft.cli.kfold import _print as print_results
from ddp_ft.cli.kfold import kfold
from ddp_ft.cli.main import ddp_ft as group
from ddp_ft.errors import EXIT_STOPPED, EXIT_USER_ERROR, UserError
from ddp_ft.evaluate import evaluate
from ddp_ft.predict import predict
from ddp_ft.run_folder.folds import members_of, open_folds, write_results
from tests.support.commands import Command
from tests.support.runs import arguments, read, train_here, wait_for

pytestmark = pytest.mark.xdist_group("kfold")


def options(data: Path, folder: Path, *more: object, epochs: int = 2) -> list[str]:
    return [*arguments(data, folder, *more, epochs=epochs), "--workers", "0", "--folds", "3"]


def call(command, *words: object) -> int:
    return command.main([str(word) for word in words], standalone_mode=False) or 0


@pytest.fixture(scope="module")
def folded(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kfold") / "cv"
    assert call(kfold, *options(shapes / "train", folder)) == 0
    return folder


def test_each_image_validates_once(folded):
    held_back = Counter(name for k in (1, 2, 3) for name in read(folded, f"fold_{k}/split.json")["val"])
    assert len(held_back) == 30 and set(held_back.values()) == {1}


def test_mean_and_deviation_are_of_the_folds(folded):
    content = read(folded, "kfold.json")
    assert (content["folds"], content["status"], content["done"]) == (3, "done", ["fold_1", "fold_2", "fold_3"])
    values = [read(folded, f"fold_{k}/summary.json")["val"]["accuracy"] for k in (1, 2, 3)]
    found = content["val"]["accuracy"]
    assert found["folds"] == values
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["deviation"] == pytest.approx(statistics.stdev(values))


@pytest.mark.slow  # three starts more
def test_the_same_command_trains_nothing_twice(folded, shapes, capfd):
    before = {file: file.stat().st_mtime_ns for file in folded.glob("fold_*/**/*") if file.is_file()}
    assert call(kfold, *options(shapes / "train", folded)) == 0
    assert before == {file: file.stat().st_mtime_ns for file in folded.glob("fold_*/**/*") if file.is_file()}
    said = capfd.readouterr().out
    assert said.count("which is finished") == 3 and "Mean and deviation over 3 folds" in said


def test_a_stop_is_passed_on_and_the_same_command_goes_on(folded, shapes, tmp_path):
    args = options(shapes / "train", tmp_path / "cv", "--max-steps", 3000, epochs=3000)
    process = Command("ddp_ft.cli.main", ["kfold", *args], merged=True)
    wait_for(tmp_path / "cv/fold_1/checkpoints/last", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    assert read(tmp_path / "cv", "fold_1/summary.json")["status"] == "stopped"
    assert read(tmp_path / "cv", "kfold.json") == {"folds": 3, "status": "unfinished"}
    assert not (tmp_path / "cv/fold_2").exists()


@pytest.mark.slow
def test_a_fold_that_is_killed_is_named(shapes, tmp_path):
    process = Command(
        "ddp_ft.cli.main", ["kfold", *options(shapes / "train", tmp_path / "cv", epochs=3000)], merged=True
    )
    wait_for(tmp_path / "cv/fold_1/checkpoints/last", process)
    os.kill(read(tmp_path / "cv", "fold_1/lease.json")["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"the run in {tmp_path}/cv/fold_1 was ended by SIGKILL" in output, output


def test_the_folder_is_an_ensemble(folded, shapes, tmp_path, capsys):
    images = shapes / "val"
    call(predict, folded, images, "--output", tmp_path / "all.csv", "--device", "cpu")
    others = [word for k in (2, 3) for word in ("--also", folded / f"fold_{k}")]
    call(predict, folded / "fold_1", *others, images, "--output", tmp_path / "named.csv", "--device", "cpu")
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "named.csv").read_bytes()
    alone = ddp_ft.load(folded / "fold_1", device="cpu")
    with (tmp_path / "all.csv").open() as lines:
        row = next(csv.DictReader(lines))
    assert float(row["prob_disc"]) != pytest.approx(alone(next(iter(row.values()))).probabilities["disc"], abs=1e-7)
    capsys.readouterr()
    call(evaluate, folded, "--data", images, "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["samples"] == 12


@pytest.mark.parametrize("more", [(), ("--split", "train")])
def test_it_is_not_evaluated_on_what_it_has_learned_from(folded, more):
    with pytest.raises(UserError, match="learned from each other's validation"):
        call(evaluate, folded, "--device", "cpu", *more)


def test_one_model_is_asked_for_where_only_one_can_be(folded):
    with pytest.raises(UserError, match="name one of them"):
        ddp_ft.load(folded)


def test_the_lines_of_an_array(shapes, tmp_path):
    call(kfold, *options(shapes / "train", tmp_path / "c v"), "--list", tmp_path / "folds.txt")
    lines = (tmp_path / "folds.txt").read_text().splitlines()
    assert lines == [f"--set data.fold={k}/3 --run-dir '{tmp_path}/c v/fold_{k}'" for k in (1, 2, 3)]
    assert read(tmp_path / "c v", "kfold.json")["status"] == "unfinished"
    with pytest.raises(UserError, match="Not all folds"):
        call(predict, tmp_path / "c v", shapes)


def test_what_is_refused(folded, shapes, tmp_path, monkeypatch):
    data = shapes / "train"
    for words, expected in (
        ([*options(data, folded), "--folds", "4"], "holds 3 folds, not 4"),
        (options(data, folded / "fold_1"), "single run"),
        (options(data, tmp_path / "x", "--set", "data.fold=1/3"), "is set for each fold"),
        (options(data, tmp_path / "x", "--extend"), "single run"),
        (options(data, tmp_path / "x", "--loss", "nothing"), "no loss"),
        (options(shapes, tmp_path / "y"), ""),
    ):
        if expected:
            with pytest.raises(UserError, match=expected):
                call(kfold, *words)
        else:  # the data itself names what validates: the first fold says so
            assert call(kfold, *words) == 2
            assert not (tmp_path / "y").exists()
    assert not (tmp_path / "x").exists()
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--processes"):
        call(kfold, *options(data, tmp_path / "x"))


def test_it_is_a_command():
    assert "kfold" in group.list_commands(None)


@pytest.mark.parametrize("content", ["", "{}", '{"folds": "x"}', '{"folds": 3.0}', '{"folds": true}', '{"folds": -3}'])
def test_a_damaged_kfold_json_is_named_and_made_anew(content, folded, tmp_path):
    (tmp_path / "cv").mkdir()
    for fold in (1, 2, 3):
        (tmp_path / f"cv/fold_{fold}").symlink_to(folded / f"fold_{fold}")
    (tmp_path / "cv/kfold.json").write_text(content)
    with pytest.raises(UserError, match="has no number of folds") as caught:
        members_of(tmp_path / "cv")
    assert "writes it anew" in (caught.value.hint or "")
    open_folds(tmp_path / "cv", 3)
    write_results(tmp_path / "cv", 3)
    assert (tmp_path / "cv/kfold.json").read_bytes() == (folded / "kfold.json").read_bytes()


def test_what_train_refuses_leaves_nothing_behind(shapes, tmp_path):
    assert call(kfold, *options(shapes, tmp_path / "cv")) == EXIT_USER_ERROR  # its val/ validates
    assert not (tmp_path / "cv").exists()


def test_folds_are_of_the_same_data(folded, shapes, tmp_path):
    """What a finished fold held back would be learned from by none, or held back twice."""
    data = shutil.copytree(shapes / "train", tmp_path / "data")
    copy = shutil.copytree(folded, tmp_path / "cv", symlinks=True)
    shutil.rmtree(copy / "fold_2")
    shutil.copy(next((data / "disc").iterdir()), data / "square/again.png")
    with pytest.raises(UserError, match=r"holds a run on other data: .*again"):
        train_here(data, copy / "fold_2", "--set", "data.fold=2/3", epochs=2)
    assert not (copy / "fold_2").exists()
    train_here(data, tmp_path / "alone", "--set", "data.fold=2/3", epochs=1)


def test_folds_of_different_lengths_are_named(folded, tmp_path, capsys):
    copy = shutil.copytree(folded, tmp_path / "cv", symlinks=True)
    summary = read(copy, "fold_2/summary.json")
    (copy / "fold_2/summary.json").write_text(
        json.dumps({**summary, "step": 3, "val": {**summary["val"], "ece": None}})
    )
    found = write_results(copy, 3)
    assert found["steps"][1] == 3 and "ece" not in found["val"] and "accuracy" in found["val"]
    print_results(copy, found)
    assert "from 3 to" in capsys.readouterr().out


def test_what_cannot_be_written(shapes, tmp_path):
    (tmp_path / "file").touch()
    for words, expected in (
        (options(shapes, tmp_path / "file"), "cannot be written to"),
        (options(shapes, tmp_path / "file/sub"), "cannot be written to"),
        ([*options(shapes, tmp_path / "x"), "--list", str(tmp_path / "no/list")], "--list .* cannot be written"),
        ([*options(shapes, tmp_path / "x"), "--list", str(tmp_path)], "--list .* cannot be written"),
    ):
        with pytest.raises(UserError, match=expected):
            call(kfold, *words)
    assert not (tmp_path / "x").exists()
