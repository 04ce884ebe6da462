"""Features of a frozen backbone: computed once, whatever interrupts it, and the same with the cache and without."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddp_ft.config.data import DataConfig
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError
from ddp_ft.features.cache import ROWS
from ddp_ft.features.precompute import FOLDER
from tests.support import counting
from tests.support.counting import COUNTS, LIMIT, images_seen
from tests.support.images import write_shapes
from tests.support.loading import eval_loader
from tests.support.runs import arguments, call_on, column, read, start_process, train_here, train_on
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.forks import train_killed

SET = "--set"
TRAIN, VAL = 75, 9  # two chunks and one
EPOCHS = 2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=TRAIN // 3, val=VAL // 3)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.save(counting.counting().state_dict(), file)
    return file


@pytest.fixture
def counts(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "counts"
    folder.mkdir()
    monkeypatch.setenv(COUNTS, str(folder))
    return folder


@pytest.fixture
def options(start):
    model = ["--model", f"{counting.THIS_FILE}:counting", "--weights", start]
    return [*model, "--recipe", "linear_probe", "--lr", 0.01, "--batch-size", 8]


@pytest.fixture(scope="module")
def whole(shapes, start, tmp_path_factory):
    """An unbroken run."""
    run = tmp_path_factory.mktemp("whole") / "r"
    model = ["--model", f"{counting.THIS_FILE}:counting", "--weights", start]
    train_here(shapes, run, *model, "--recipe", "linear_probe", "--lr", 0.01, "--batch-size", 8, epochs=EPOCHS)
    return run


def test_a_restart_computes_nothing(shapes, tmp_path, options, counts):
    """Killed on the way, it goes on with the features that are there, and ends as an unbroken run does."""
    more = [*options, SET, "eval.every_epochs=40"]
    train_killed(
        arguments(shapes, tmp_path / "cut", *more, SET, "checkpoint.every_steps=3", epochs=40),
        tmp_path / "fault",
        count=4,
    )
    assert images_seen(counts) == TRAIN + VAL
    for run, seen in (("cut", 0), ("whole", TRAIN + VAL)):
        train_here(shapes, tmp_path / run, *more, epochs=40)
        assert images_seen(counts) == seen
    assert read(tmp_path / "cut", "summary.json")["restarts"] == 1
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def rows_of(run: Path) -> dict[str, bytes]:
    return {folder.name: (folder / ROWS).read_bytes() for folder in (run / FOLDER).iterdir()}


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_same_bits_on_any_number_of_processes(shapes, tmp_path, options, counts, whole, world_size):
    """With the cache, from the cache of another number of processes, after its deletion, and without."""
    shutil.copytree(whole / FOLDER, tmp_path / "other" / FOLDER)
    shutil.copytree(whole / FOLDER, tmp_path / "torn" / FOLDER)
    damage(tmp_path / "torn" / FOLDER)
    for run, seen, *more in (
        ("new", TRAIN + VAL),
        ("other", 0),
        ("torn", 64),
        ("without", TRAIN + VAL, SET, "freeze.cache_gb=0"),
    ):
        train_on(world_size, shapes, tmp_path / run, *options, *more, epochs=EPOCHS)
        assert images_seen(counts) == seen, run
        assert_same_result(tmp_path / run, whole)
        assert (tmp_path / run / FOLDER).exists() == (run != "without")
    assert rows_of(tmp_path / "new") == rows_of(tmp_path / "torn") == rows_of(whole)


def damage(cache: Path) -> None:
    """Change one value of the training set's first chunk."""
    file = max(cache.glob(f"*/{ROWS}"), key=lambda file: file.stat().st_size)
    with file.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\1\2\3\4")


@pytest.mark.parametrize("threads", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_kill_in_the_middle_costs_only_what_was_not_complete(
    shapes, tmp_path, options, counts, whole, monkeypatch, threads
):
    """In one thread the main process computes; with two, worker processes do. The bits are the same."""
    monkeypatch.setenv(LIMIT, "70")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    process = start_process(arguments(shapes, tmp_path / "r", *options, SET, "data.workers=1", epochs=EPOCHS))
    process.communicate()
    assert process.returncode != 0 and not (tmp_path / "r/summary.json").exists()
    before = images_seen(counts)
    assert before < TRAIN + VAL
    monkeypatch.delenv(LIMIT)
    train_here(shapes, tmp_path / "r", *options, epochs=EPOCHS)
    assert_same_result(tmp_path / "r", whole)
    assert images_seen(counts) == (TRAIN + VAL - 64 if threads == "1" else pytest.approx(TRAIN + VAL, abs=64))


def test_a_cache_folder_for_several_runs(shapes, tmp_path, options, counts, whole):
    """Another seed and rate, the same features; another size of images has other ones."""
    shared = [SET, f"freeze.cache_dir={tmp_path / 'cache'}"]
    train_here(shapes, tmp_path / "a", *options, *shared, epochs=EPOCHS)
    assert images_seen(counts) == TRAIN + VAL
    assert_same_result(tmp_path / "a", whole)
    train_here(shapes, tmp_path / "b", *options, *shared, "--seed", 3, "--lr", 0.1)
    assert images_seen(counts) == 0 and len(list((tmp_path / "cache").iterdir())) == 2
    train_here(shapes, tmp_path / "c", *options, *shared, "--image-size", 40)
    assert images_seen(counts) == TRAIN + VAL and len(list((tmp_path / "cache").iterdir())) == 4
    assert not (tmp_path / "a" / FOLDER).exists()


@pytest.mark.slow
def test_two_runs_at_once_in_one_cache_folder(shapes, tmp_path, options, whole):
    shared = [*options, SET, f"freeze.cache_dir={tmp_path / 'cache'}"]
    processes = [start_process(arguments(shapes, tmp_path / name, *shared, epochs=EPOCHS)) for name in "ab"]
    for name, process in zip("ab", processes, strict=True):
        told = process.communicate()[0]
        assert process.returncode == 0, told
        assert_same_result(tmp_path / name, whole)


def test_a_folder_that_cannot_be_written_to_fails_no_run(shapes, tmp_path, options, whole, capsys):
    (tmp_path / "file").write_text("")
    train_here(shapes, tmp_path / "r", *options, SET, f"freeze.cache_dir={tmp_path / 'file'}", epochs=EPOCHS)
    assert "kept in memory" in capsys.readouterr().out
    assert_same_result(tmp_path / "r", whole)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_full_disk_fails_no_run(shapes, tmp_path, options, whole, world_size):
    """The second chunk does not fit; what was stored before it is used all the same."""
    model = ["--model", f"{counting.THIS_FILE}:on_a_full_disk", SET, "data.workers=0"]
    shown = train_on(world_size, shapes, tmp_path / "r", *options, *model, epochs=EPOCHS)
    assert "could not be stored" in shown and "kept in memory" in shown
    assert column(tmp_path / "r", "loss") == column(whole, "loss")
    assert read(tmp_path / "r", "summary.json")["val"] == read(whole, "summary.json")["val"]


def test_a_bound_is_told_before_anything_is_computed(shapes, tmp_path, options, counts):
    with pytest.raises(UserError, match=r"freeze.cache_gb allows 1e-06"):
        train_here(shapes, tmp_path / "r", *options, SET, "freeze.cache_gb=1e-6")
    assert images_seen(counts) == 0


def test_outputs_on_features_are_those_of_the_whole_model(shapes, whole):
    """And so is the accuracy of evaluation on images: the head was trained on what it will see."""
    module = counting.counting()
    module.load_state_dict(load_file(whole / "best/model.safetensors"))
    preprocess = Preprocess.from_mapping(read(whole, "best/model.json")["preprocessing"])
    source = open_splits(DataConfig(path=shapes), seed=0).val
    [batch] = eval_loader(source, eval_transform(preprocess), 64)
    prepared = DeviceTransform(preprocess, "cpu", channels_last=False)(batch)
    file = min((whole / FOLDER).glob(f"*/{ROWS}"), key=lambda file: file.stat().st_size)
    stored = torch.from_numpy(np.fromfile(file, np.float32)).view(VAL, -1)
    with torch.no_grad():
        expected = module.eval()(prepared["image"])
        assert torch.allclose(module.get_submodule("1.6")(stored), expected, rtol=0, atol=1e-5)
    told = json.loads(call_on(1, "ddp_ft.evaluate", whole, "--data", shapes, "--device", "cpu"))
    best = read(whole, "summary.json")["val"]
    assert {name: told[name] for name in best} == pytest.approx(best, abs=1e-5)


def test_the_key_is_written_for_people(whole):
    told = [json.loads((folder / "key.json").read_text()) for folder in (whole / FOLDER).iterdir()]
    assert len(told) == 2 and told[0]["weights"] == told[1]["weights"] and told[0]["pictures"] != told[1]["pictures"]
    assert {"model", "preprocess", "libraries", "data", "plan"} <= told[0].keys()
    assert told[0]["plan"] == {"device": "cpu", "precision": "fp32", "channels_last": False, "inputs": {}}


def test_views(shapes, tmp_path, options, counts):
    """Each is computed once; which of them a sample is seen in follows from epoch and sample, on any world."""
    views = [SET, "freeze.views=3", "--augment", "light"]
    train_here(shapes, tmp_path / "a", *options, *views, epochs=EPOCHS)
    assert images_seen(counts) == 3 * TRAIN + VAL
    train_here(shapes, tmp_path / "b", *options, "--augment", "light", epochs=EPOCHS)
    assert images_seen(counts) == TRAIN + VAL
    assert column(tmp_path / "a", "loss") != column(tmp_path / "b", "loss")
    assert len(set(rows_of(tmp_path / "a").values())) == 4, "each view is another one"
    train_on(2, shapes, tmp_path / "c", *options, *views, epochs=EPOCHS)
    assert_same_result(tmp_path / "c", tmp_path / "a")
    train_here(shapes, tmp_path / "d", *options, *views, "--seed", 1, epochs=EPOCHS)
    assert len(rows_of(tmp_path / "a").keys() & rows_of(tmp_path / "d").keys()) == 2, "the plain ones need no seed"


def test_views_need_features(shapes, tmp_path):
    with pytest.raises(UserError, match="this run computes none"):
        train_here(shapes, tmp_path / "r", SET, "freeze.views=2")
