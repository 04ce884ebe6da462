"""`--tune` in the processes that train: the same answer on all of them, and no trace in what follows."""

import signal
import time

import pytest
import yaml

from ddp_ft.errors import UserError
from tests.support.ranks import run_ranks
from tests.support.runs import _run_and_tell, arguments, read, train_here, train_on
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

RULES = {
    "compute.memory_format": "contiguous", "compute.precision": "fp32", "train.micro_batch": None,
    "data.decoder": "shrink", "data.workers": 1,
}  # fmt: skip


def hasten(margin):
    """Two rounds of single steps; and what a candidate must gain. To be called in the process that measures."""
    from ddp_ft.tuning import questions, timing

    timing.ROUNDS, timing.MARGIN, questions.TURN_SECONDS = 2, margin, 0.0


def _run(margin, args):
    hasten(margin)
    return _run_and_tell("ddp_ft.train", args)


def tune_on(world_size, *args, margin=1e9, **options):
    """What rank 0 prints of a run with --tune in which only a gain of that margin replaces the rule."""
    return run_ranks(world_size, _run, margin, arguments(*args, "--tune", **options), connected=False)[0]


@pytest.fixture
def hasty(monkeypatch):
    """The same in this process."""
    from ddp_ft.tuning import questions, timing, tune

    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "MARGIN", 1e9)
    monkeypatch.setattr(questions, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(tune, "usable_cores", lambda: 1)


@pytest.mark.parametrize(
    ("world_size", "more"),
    [(1, ()), (2, ("--mixup", 0.4)), pytest.param(3, ("--optimizer", "sgd"), marks=pytest.mark.slow)],
)
def test_with_the_answer_of_the_rules_the_bits_are_those_without(shapes, tmp_path, world_size, more):
    """Batch norm and dropout: weights, buffers, generators and the optimizer's state would all tell."""
    options = [*more, "--ema", 0.9, "--workers", 0]
    told = tune_on(world_size, shapes, tmp_path / "tuned", *options, net="with_batch_norm")
    assert "channels_last, fp32" in told
    train_on(world_size, shapes, tmp_path / "plain", *options, net="with_batch_norm")
    tuned = read(tmp_path / "tuned", "plan.json")["tuned"]
    assert tuned == {key: value for key, value in RULES.items() if key != "data.workers"}
    assert_same_result(tmp_path / "tuned", tmp_path / "plain")


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_is_faster_is_chosen_and_stays(shapes, tmp_path, world_size):
    """On two ranks only the second is slow. Later starts, and others from config.yaml, measure nothing."""
    run, given = tmp_path / "run", ["--precision", "fp32", "--workers", 0, "--batch-size", 6]
    tune_on(world_size, shapes, run, *given, net="slow_in_contiguous_memory", margin=0.5)
    plan, config = read(run, "plan.json"), yaml.safe_load((run / "config.yaml").read_text())
    assert plan["channels_last"] and plan["tuned"]["compute.memory_format"] == "channels_last"
    assert config["compute"]["memory_format"] == "channels_last" and "compute.precision" not in plan["tuned"]
    for epochs, more in ((2, ["--tune"]), (3, [])):
        options = [*given, *more, "--extend"]
        told = train_on(world_size, shapes, run, *options, net="slow_in_contiguous_memory", epochs=epochs)
        assert "Measured" not in told and read(run, "plan.json")["measured"] == plan["measured"]
    again, options = tmp_path / "again", ["--config", run / "config.yaml"]
    train_on(world_size, shapes, again, *options, *given, net="slow_in_contiguous_memory")
    assert read(again, "plan.json")["tuned"] == {} and read(again, "plan.json")["channels_last"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_micro_batch_alone(shapes, tmp_path, world_size):
    """Shares of 8 images; a single part of them is quicker than two."""
    options = ["--batch-size", 8 * world_size, "--micro-batch", "auto"]
    args = arguments(shapes, tmp_path / "run", *options, net="slow_with_many_images")
    told = run_ranks(world_size, _run, 0.5, args, connected=False)[0]
    assert "micro-batch" in told and "channels_last, fp32" not in told
    plan = read(tmp_path / "run", "plan.json")
    assert plan["micro_batch"] == 4 and plan["tuned"] == {"train.micro_batch": 4}


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stop_while_it_measures(shapes, tmp_path, world_size):
    """It ends within seconds, leaves nothing that a new start would stumble over, and begins again."""
    run, slow = tmp_path / "run", Fault(str(tmp_path / "fault"), "slow", "train", count=2, seconds=1.0)
    args = arguments(shapes, run, "--tune", "--workers", 0)
    job = ForkedJob(world_size, args, slow.environment(), prepare=hasten, values=(1e9,))
    job.wait_for(slow.reached)
    begin = time.monotonic()
    job.signal(signal.SIGTERM)
    codes, said = job.end()
    assert time.monotonic() - begin < 10, said
    assert codes == ([75] if world_size == 1 else [0] * world_size) and "Stopped before training" in said, said
    assert read(run, "summary.json")["status"] == "stopped" and not (run / "config.yaml").exists()
    codes, said = run_forked(world_size, args, prepare=hasten, values=(1e9,))
    assert codes == [0] * world_size and "Measured" in said, said
    assert read(run, "summary.json")["status"] == "done" and read(run, "plan.json")["measured"]


def test_a_dry_run_measures_and_writes_nothing(shapes, tmp_path, capsys, hasty):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "stop").touch()  # an old request stops no dry run
    train_here(shapes, tmp_path / "r", "--tune", "--dry-run")
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["stop"]
    told = capsys.readouterr().out
    assert "channels_last, fp32" in told and "workers" in told and "Dry run" in told


def test_beside_a_micro_batch_that_was_given(shapes, tmp_path, capsys, hasty):
    train_here(shapes, tmp_path / "run", "--tune", "--micro-batch", 3, "--dry-run")
    assert "format" in capsys.readouterr().out


def test_a_run_that_began_without_it_is_refused(shapes, tmp_path, hasty):
    train_here(shapes, tmp_path / "r")
    with pytest.raises(UserError, match="began without it"):
        train_here(shapes, tmp_path / "r", "--tune", "--extend", epochs=2)
    with pytest.raises(UserError, match="another recipe"):
        train_here(shapes, tmp_path / "r", "--tune", "--lr", 0.5)


def test_the_smallest_batch_and_large_jpegs(tmp_path, hasty, capsys):
    """A batch of one leaves no micro-batch to choose; the table says what a decoder changes."""
    import numpy as np
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 255, (4, 160, 160, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        for part in ("train", "val"):
            (folder := tmp_path / "data" / part / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.jpg")
    train_here(tmp_path / "data", tmp_path / "r", "--tune", "--batch-size", 1, "--workers", 0, "--precision", "fp32")
    rows = {row["candidate"]: row for row in read(tmp_path / "r", "plan.json")["measured"]}
    assert not any(row["what"] == "micro-batch" for row in rows.values())
    assert rows["shrink"]["chosen"] and "off by" in rows["shrink"]["note"] != "off by 0 of 255"
    assert rows["full"]["note"] == "off by 0 of 255" and rows["pillow"]["note"] == "for comparison"
    assert "off by 0 of 255" in capsys.readouterr().out


def test_features_leave_nothing_to_measure(shapes, start, tmp_path, capsys, hasty):
    more = ["--weights", start, "--recipe", "linear_probe", "--micro-batch", "auto"]
    train_here(shapes, tmp_path / "r", *more)
    assert "nothing was measured" in capsys.readouterr().out
    assert read(tmp_path / "r", "plan.json")["tuned"] == {"train.micro_batch": None}
