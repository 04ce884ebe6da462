"""A run whose length nobody gives: the data decides it, and what follows from it holds on any machine and restart."""

import json
import math
import re

import pytest
import torch

from ddp_ft.errors import UserError
from tests.support import nets
from tests.support.runs import arguments, column, read, rows, train_here, train_on
from tests.system.faults.forks import train_killed

# One unbroken run for all.
pytestmark = pytest.mark.xdist_group("course")
# A beginning of such a run, with three evaluations.
SHORT = ["--max-steps", 300, "--set", "log.every_steps=10"]


def error(accuracy):
    """The standard error on 12 images, with one more of each kind."""
    share = (12 * accuracy + 1) / 14
    return math.sqrt(share * (1 - share) / 12)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """An unbroken run in one process."""
    run = tmp_path_factory.mktemp("course") / "whole"
    train_here(shapes, run, *SHORT, epochs=None)
    return run


def test_the_data_decides(whole, shapes, tmp_path, capsys):
    plan, summary = read(whole, "plan.json"), read(whole, "summary.json")
    assert plan["epochs"] > 300 / 4 and plan["evaluation_epochs"] > 1
    assert plan["why_epochs"] == "for 30 images of 3 classes, nothing pretrained"
    every = 4 * plan["evaluation_epochs"]
    assert column(whole, "step", "val") == [every, 2 * every, 3 * every] == [100, 200, 300]
    kept = sorted(folder.name for folder in (whole / "checkpoints").glob("step_*"))
    assert kept[-2:] == ["step_00000200", "step_00000300"]  # the newest two: none between evaluations
    assert summary["best_weights"] == "ema" and (whole / "checkpoints/last/ema.safetensors").exists()
    assert not any(name.startswith("ema_") for row in rows(whole, "val") for name in row)
    train_here(shapes, tmp_path / "r", "--dry-run", epochs=None)
    said = capsys.readouterr().out
    steps = f"{4 * plan['epochs']:,} = {plan['epochs']} epochs x 4 (for 30 images of 3 classes, nothing pretrained)"
    assert steps in said and "\n  time " in said


def test_who_would_wait_for_more_than_an_hour_is_told_before_the_first_step(shapes, tmp_path, capsys):
    """A net whose passes of evaluation take 0.3 s, so that a step of 32 images seems to take seconds."""
    torch.save(nets.slow_to_evaluate(3).state_dict(), tmp_path / "weights.pt")
    slow = ["--dry-run", "--batch-size", 32, "--set", "freeze.schedule={0: backbone, 1500: none}"]
    slow += ["--weights", tmp_path / "weights.pt"]
    train_here(shapes, tmp_path / "r", *slow, net="slow_to_evaluate", epochs=None)
    said = capsys.readouterr().out
    assert re.search(r"\n  time +about [1-9]:\d\d:\d\d for [\d,]+ steps", said)
    [warning] = [line for line in said.splitlines() if line.startswith("Warning: whole run")]
    assert "on the CPU" in warning and "--max-minutes 20" in warning and "--recipe linear_probe" in warning
    train_here(shapes, tmp_path / "r", *slow, net="slow_to_evaluate", epochs=2000)
    assert "whole run" not in capsys.readouterr().out  # who asks for a number has chosen


def test_what_is_evaluated_kept_and_saved_is_one_model(whole):
    step = read(whole, "summary.json")["best_step"]
    kept = whole / f"checkpoints/step_{step:08d}/ema.safetensors"
    assert kept.read_bytes() == (whole / "best/model.safetensors").read_bytes()
    assert (whole / "checkpoints/best").readlink().name == kept.parent.name


def test_the_latest_of_equally_good_models_is_kept(whole):
    evaluated = rows(whole, "val")
    top = max(row["accuracy"] for row in evaluated)
    near = [row["step"] for row in evaluated if row["accuracy"] >= top - error(top)]
    assert read(whole, "summary.json")["best_step"] == near[-1]


def test_a_killed_run_ends_with_the_same_bytes(whole, shapes, tmp_path):
    more = [*SHORT, "--set", "checkpoint.every_steps=70"]
    train_killed(arguments(shapes, tmp_path / "cut", *more, epochs=None), tmp_path / "fault")
    train_here(shapes, tmp_path / "cut", *more, epochs=None)
    assert read(tmp_path / "cut", "summary.json")["restarts"] == 1
    for file in ("best/model.safetensors", "checkpoints/last/ema.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_takes_the_same_course(whole, shapes, tmp_path, world_size):
    train_on(world_size, shapes, tmp_path / "r", *SHORT, epochs=None)
    assert column(tmp_path / "r", "step", "val") == column(whole, "step", "val")
    assert column(tmp_path / "r", "loss", "val") == pytest.approx(column(whole, "loss", "val"), rel=1e-4)
    for name in ("epochs", "evaluation_epochs", "ema_decay", "choice", "total_steps"):
        assert read(tmp_path / "r", "plan.json")[name] == read(whole, "plan.json")[name]


def test_it_is_extended_by_a_number_and_never_shortened(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--max-steps", 4, epochs=None)
    epochs = read(tmp_path / "r", "plan.json")["epochs"]
    with pytest.raises(UserError, match="never shortened"):
        train_here(shapes, tmp_path / "r", "--max-steps", 4, "--extend", epochs=epochs - 1)
    with pytest.raises(UserError, match="another length"):
        train_here(shapes, tmp_path / "r", "--max-steps", 4, epochs=epochs + 1)
    train_here(shapes, tmp_path / "r", "--max-steps", 8, "--extend", epochs=epochs + 1)
    plan = read(tmp_path / "r", "plan.json")
    assert (plan["epochs"], plan["total_steps"], plan["ema_decay"] > 0) == (epochs + 1, 8, True)
    with pytest.raises(UserError, match="--extend needs the new number"):
        train_here(shapes, tmp_path / "r", "--max-steps", 9, "--extend", epochs=None)


def test_a_plan_without_a_number_shortens_nothing(shapes, tmp_path):
    """It is made anew, as any damaged plan."""
    train_here(shapes, tmp_path / "r", "--max-steps", 4, epochs=None)
    plan = read(tmp_path / "r", "plan.json")
    (tmp_path / "r/plan.json").write_text(json.dumps({**plan, "epochs": "many"}))
    train_here(shapes, tmp_path / "r", "--max-steps", 8, "--extend", epochs=plan["epochs"] + 1)
    assert read(tmp_path / "r", "plan.json")["epochs"] == plan["epochs"] + 1


def test_what_auto_became_holds_for_later_starts(shapes, tmp_path):
    """Also if a later version has another rule."""
    train_here(shapes, tmp_path / "r", "--max-steps", 4, epochs=None)
    plan = read(tmp_path / "r", "plan.json")
    (tmp_path / "r/plan.json").write_text(json.dumps({**plan, "epochs": 7, "evaluation_epochs": 2}))
    train_here(shapes, tmp_path / "r", "--max-steps", 99, "--extend", epochs=None)
    plan = read(tmp_path / "r", "plan.json")
    assert (plan["epochs"], plan["total_steps"], plan["evaluation_epochs"]) == (7, 28, 2)


def test_a_better_model_by_more_than_luck_is_kept(shapes, tmp_path):
    """A rate that destroys what the probe has learned: nothing later is near it."""
    bad = ["--recipe", "lp_ft", "--weights", "none", "--lr", 3, "--optimizer", "sgd", "--set", "probe.lr=0.1"]
    train_here(shapes, tmp_path / "r", *bad, "--max-steps", 8, "--set", "eval.choose=latest", epochs=4)
    summary, probed = read(tmp_path / "r", "summary.json"), rows(tmp_path / "r", "val", "probe")[-1]["accuracy"]
    assert max(column(tmp_path / "r", "accuracy", "val")) < probed - error(probed)
    assert (summary["best_phase"], summary["val"]["accuracy"]) == ("probe", probed)


def test_a_run_of_a_number_goes_on_with_that_number(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", epochs=1)
    with pytest.raises(UserError, match="another length") as caught:
        train_here(shapes, tmp_path / "r", epochs=None)
    assert caught.value.hint == "Add --epochs 1 to go on with it."


def test_a_budget_of_time_keeps_the_number_of_evaluations(shapes, tmp_path, monkeypatch):
    """A run whose length nobody gave, shortened to a third: its evaluations come three times as often."""
    monkeypatch.setattr("ddp_ft.training.loop.STEPS_TO_MEASURE", 2)
    train_here(shapes, tmp_path / "r", "--max-minutes", 0.02, epochs=None)
    assert read(tmp_path / "r", "summary.json")["step"] < read(tmp_path / "r", "plan.json")["total_steps"] / 2
    assert 15 <= len(column(tmp_path / "r", "step", "val")) <= 21
