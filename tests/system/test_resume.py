"""The same command goes on where the run was; and the README's table of grades, a test for each row."""

import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import Command
from tests.support.runs import arguments, column, read, start_process, train_here, train_on, wait_for
from tests.system.faults.forks import train_killed

CADENCE = ["--set", "checkpoint.every_steps=3", "--set", "checkpoint.keep=99"]


@pytest.mark.parametrize("net", [pytest.param("plain", marks=pytest.mark.slow), "with_batch_norm"])
def test_grade_a_killed_and_continued_in_one_process(shapes, tmp_path, net):
    train_here(shapes, tmp_path / "whole", *CADENCE, net=net, epochs=8)
    train_killed(arguments(shapes, tmp_path / "cut", *CADENCE, net=net, epochs=8), tmp_path / "fault")
    assert not (tmp_path / "cut/summary.json").exists()
    assert train_here(shapes, tmp_path / "cut", *CADENCE, net=net, epochs=8) == 0
    assert column(tmp_path / "cut", "loss") == column(tmp_path / "whole", "loss")
    assert column(tmp_path / "cut", "step") == list(range(1, 33))
    for file in ("best/model.safetensors", "best/model.json", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert read(tmp_path / "cut", "summary.json")["restarts"] == 1
    points = EventAccumulator(str(tmp_path / "cut/tensorboard")).Reload().Scalars("2_loss/train")
    assert [point.step for point in points] == list(range(1, 33))


def test_a_stop_request_saves_and_exits_with_75(shapes, tmp_path):
    process = start_process(arguments(shapes, tmp_path / "r", epochs=2000))
    wait_for(tmp_path / "r/checkpoints/last", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    summary = read(tmp_path / "r", "summary.json")
    assert summary["status"] == "stopped"
    assert (tmp_path / "r/checkpoints/last").readlink().name == f"step_{summary['step']:08d}"


def test_under_torchrun_a_stop_request_reaches_all_ranks(shapes, tmp_path):
    words = ["--standalone", "--nproc_per_node=2", "-m", "ddp_ft.train"]
    args = arguments(shapes, tmp_path / "r", epochs=1600)
    process = Command("torch.distributed.run", [*words, *args], merged=True)
    wait_for(tmp_path / "r/checkpoints/last", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert read(tmp_path / "r", "summary.json")["status"] == "stopped", output
    assert "Internal error" not in output


def test_grade_b_same_curve_on_any_number_of_processes(shapes, tmp_path):
    train_here(shapes, tmp_path / "w1", epochs=3)
    for world_size, more in ((2, []), (3, []), (2, ["--micro-batch", "3"])):
        run = tmp_path / f"w{world_size}{len(more)}"
        train_on(world_size, shapes, run, *more, epochs=3)
        assert column(run, "loss") == pytest.approx(column(tmp_path / "w1", "loss"), rel=1e-4)
        assert column(run, "loss", "val") == pytest.approx(column(tmp_path / "w1", "loss", "val"), rel=1e-4)


def test_grade_b_another_number_of_processes_goes_on_with_the_same_curve(shapes, tmp_path):
    constant = ["--schedule", "constant", "--set", "schedule.warmup=0"]
    train_here(shapes, tmp_path / "straight", *constant, epochs=3)
    for world_size, epochs in ((2, 1), (1, 2), (3, 3)):
        output = train_on(world_size, shapes, tmp_path / "moved", *constant, "--extend", epochs=epochs)
    assert column(tmp_path / "moved", "loss") == pytest.approx(column(tmp_path / "straight", "loss"), rel=1e-4)
    assert "from here on (world_size: 1 -> 3" in output


@pytest.mark.parametrize("world_size", [2, 3])
def test_grade_c_same_schedule_and_step_sizes_with_batch_norm(shapes, tmp_path, world_size):
    train_here(shapes, tmp_path / "w1", net="with_batch_norm", epochs=2)
    output = train_on(world_size, shapes, tmp_path / "w2", net="with_batch_norm", epochs=2)
    assert "c (same samples in each step) on another number of processes" in output
    for name in ("step", "epoch", "lr/head"):
        assert column(tmp_path / "w1", name) == column(tmp_path / "w2", name)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_grade_a_repeats_to_the_bit(shapes, tmp_path, world_size):
    for run in ("a", "b"):
        train_on(world_size, shapes, tmp_path / run, net="with_batch_norm", epochs=2)
    assert column(tmp_path / "a", "loss") == column(tmp_path / "b", "loss")
    files = [tmp_path / run / "best/model.safetensors" for run in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_drawn_split_is_read_back(shapes, tmp_path):
    train_here(shapes / "train", tmp_path / "r", epochs=1)
    before = (tmp_path / "r/split.json").read_text()
    train_here(shapes / "train", tmp_path / "r", "--extend", epochs=2)
    assert (tmp_path / "r/split.json").read_text() == before
