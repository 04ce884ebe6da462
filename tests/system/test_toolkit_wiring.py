"""How the parts of the toolkit are put together: what would still run if two of them were joined wrongly."""

import shutil

import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import Machine, World
from ddp_ft.run import phases
from ddp_ft.training.build import compose
from ddp_ft.training.open_phase import open_phase
from ddp_ft.training.request import Request
from tests.support import nets
from tests.support.runs import column, read, train_here
from tests.support.tables import write_shape_table

SET = "--set"


@pytest.mark.parametrize(("sampling", "expected"), [("natural", {1.0, 2.0}), ("weighted", {1.0})])
def test_weights_count_once_in_the_order_or_in_the_loss(tmp_path, sampling, expected):
    settings = {
        "data.path": write_shape_table(tmp_path / "table.csv"), "data.weight": "w", "data.sampling": sampling,
        "data.workers": 0, "model.name": f"{nets.THIS_FILE}:plain", "model.weights": "none", "model.image_size": 32,
    }  # fmt: skip
    request = Request(tmp_path / "r", (settings,))
    run, state, _ = compose(make_config(settings), request, Machine(World(0, 1, 0, torch.device("cpu")), Launch()))
    batch = next(open_phase(run, state, print).batches(state))[0]
    assert {float(weight) for weight in batch["weight"]} == expected


def test_the_moving_average_begins_with_the_probes_head(shapes, tmp_path, start):
    more = ["--weights", start, "--recipe", "full", SET, "probe.epochs=2", "--ema", 0.999, "--max-steps", 1]
    train_here(shapes, tmp_path / "r", *more, "--lr", 1e-12)
    assert column(tmp_path / "r", "ema_loss", "val") == pytest.approx(column(tmp_path / "r", "loss", "val"), rel=1e-6)


class Killed(BaseException):
    """What ends a run as a kill would: nothing catches it."""


def test_a_kill_after_the_probe_leaves_the_first_checkpoint_its_score(shapes, tmp_path, start, monkeypatch):
    """The weights that training begins with are those that the probe's evaluation was of."""

    def kill(run, state):
        raise Killed

    options = ["--weights", start, "--recipe", "full", SET, "probe.epochs=2", "--max-steps", 2]
    with monkeypatch.context() as patch:
        patch.setattr(phases, "close_probe", kill)
        with pytest.raises(Killed):
            train_here(shapes, tmp_path / "r", *options)
    for run in ("r", "unbroken"):
        train_here(shapes, tmp_path / run, *options)
    files = [tmp_path / run / "checkpoints" / "step_00000000" / "score.json" for run in ("r", "unbroken")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_stage_that_never_comes_is_told(shapes, tmp_path, capsys):
    schedule = "freeze.schedule={0: backbone, 2: none}"
    train_here(shapes, tmp_path / "r", SET, schedule, "--max-steps", 1, epochs=2)
    assert "entry 2 of freeze.schedule is never reached" in capsys.readouterr().out
    train_here(shapes, tmp_path / "s", SET, schedule, "--max-steps", 1, epochs=3)
    assert "never reached" not in capsys.readouterr().out


@pytest.mark.parametrize("first", ["augment.flip=0.25", "augment.preset=heavy"])
def test_what_is_set_beside_a_preset_wins_in_any_order(shapes, tmp_path, first):
    both = ["augment.flip=0.25", "augment.preset=heavy"]
    ordered = [first, *(text for text in both if text != first)]
    train_here(shapes, tmp_path / "r", "--max-steps", 1, *(part for text in ordered for part in (SET, text)))
    stored = (tmp_path / "r/config.yaml").read_text()
    assert "flip: 0.25" in stored and "mixup: 0.2" in stored
    assert read(tmp_path / "r", "summary.json")["status"] == "done"


def go_back(run, step):
    """The run as a kill behind the checkpoint of `step` would have left it."""
    (run / "summary.json").unlink()
    for folder in (run / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def test_a_probe_that_is_done_is_not_done_again(shapes, tmp_path, start, capsys):
    more = ["--weights", start, "--recipe", "lp_ft", SET, "checkpoint.keep=99", SET, "probe.epochs=2", "--lr", 0.01]
    train_here(shapes, tmp_path / "r", *more, epochs=2)
    shutil.copytree(tmp_path / "r", tmp_path / "again", symlinks=True)
    go_back(tmp_path / "again", 0)
    capsys.readouterr()
    train_here(shapes, tmp_path / "again", *more, epochs=2)
    said = capsys.readouterr().out
    assert "\nTraining: epochs 2, steps 8.\n" in said and "Probe" not in said
    for file in ("best/model.safetensors", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "r" / file).read_bytes()
    for split, phase in (("train", "train"), ("val", "train"), ("train", "probe"), ("val", "probe")):
        assert column(tmp_path / "again", "loss", split, phase) == column(tmp_path / "r", "loss", split, phase)
    assert read(tmp_path / "again", "summary.json")["val"] == read(tmp_path / "r", "summary.json")["val"]


def test_a_run_that_ended_early_can_be_lengthened(shapes, tmp_path):
    """What --max-minutes and early stopping had decided holds for the length that it was decided for."""
    train_here(shapes, tmp_path / "m", "--max-minutes", 1e-3, epochs=8)
    before = read(tmp_path / "m", "summary.json")["step"]
    assert before < 32
    train_here(shapes, tmp_path / "m", "--extend", "--max-minutes", 9, epochs=9)
    assert before < read(tmp_path / "m", "summary.json")["step"] == 36
    patient = ["--patience", 1, "--lr", 1e-12]
    train_here(shapes, tmp_path / "p", *patient, epochs=5)
    assert read(tmp_path / "p", "summary.json")["epoch"] == 2
    train_here(shapes, tmp_path / "p", *patient, "--extend", epochs=6)
    assert read(tmp_path / "p", "summary.json")["epoch"] == 3


def test_the_wall_clock_counts_the_probe_with_its_features(shapes, tmp_path, start):
    slow = ["--weights", start, "--recipe", "lp_ft", "--model", f"{nets.THIS_FILE}:slow_to_evaluate", "--max-steps", 1]
    train_here(shapes, tmp_path / "r", *slow)
    assert read(tmp_path / "r", "summary.json")["wall_seconds"] > 2 * nets.SLOW_SECONDS
