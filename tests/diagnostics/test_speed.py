"""What follows from the speeds that were measured."""

from types import SimpleNamespace

import pytest

from ddp_ft.config.loading import make_config
from ddp_ft.diagnostics import speed
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING
from ddp_ft.diagnostics.speed import Room, Speed
from ddp_ft.slurm.walltime import Allocation
from ddp_ft.trackers.console import clock

FAST_DISK = Speed(loading=1000.0, learning=100.0, samples=32)
GPU = Speed(loading=200.0, learning=1000.0, samples=32)


def run(**keys):
    """3 epochs of 10 steps of 32 images, 64 to validate on."""
    plan = SimpleNamespace(train_samples=320, val_samples=64, steps_per_epoch=10, total_steps=30, evaluation_epochs=1)
    return SimpleNamespace(config=make_config(keys), plan=plan, evaluated=lambda phase: ("raw",))


@pytest.mark.parametrize(
    "found, workers, cores, is_cuda, verdict, told",
    [
        (GPU, 5, 8, True, OK, ""),
        (GPU, 2, 8, True, WARNING, "--workers 5 would do"),
        (GPU, 2, 4, True, WARNING, "It would take 5 workers, and each process has 4 cores"),
        (GPU, 0, 1, True, WARNING, "nvjpeg"),
        (FAST_DISK, 0, 1, False, OK, ""),
        (Speed(200.0, 100.0, 8), 0, 1, False, NOTE, "shrink"),
        (Speed(50.0, 100.0, 8), 0, 1, False, WARNING, "shrink"),
    ],
)
def test_waiting_for_data(found, workers, cores, is_cuda, verdict, told):
    finding = speed.waiting(found, workers, cores, is_cuda)
    assert finding.verdict == verdict
    assert told in finding.remedy and bool(finding.remedy) == (verdict != OK)


def test_the_share_of_waiting_is_said():
    assert "wait for data 60% of its time" in speed.waiting(GPU, 2, 8, True).text


def test_memory():
    assert speed.memory(Room(80, 100), FAST_DISK, 32, is_cuda=True).verdict == OK
    assert speed.memory(Room(95, 100), FAST_DISK, 32, is_cuda=True).verdict == WARNING
    ran_out = Speed(100.0, 1.0, 32, ran_out=True)
    assert speed.memory(Room(95, 100), ran_out, 32, is_cuda=True).verdict == PROBLEM
    assert [finding.name for finding in speed.rates(ran_out, 1)] == ["loading"]
    few = speed.memory(Room(80, 100), FAST_DISK, 64, is_cuda=False)
    assert "the run has 64" in few.text


def test_the_rate_of_the_whole_job():
    assert speed.training_rate(FAST_DISK, 0, 2, is_cuda=False) == pytest.approx(2 / (1 / 100 + 1 / 1000))
    assert speed.training_rate(GPU, 2, 4, is_cuda=True) == 4 * 400
    assert speed.training_rate(GPU, 8, 4, is_cuda=True) == 4 * 1000


def test_how_long_the_run_takes():
    """At 32 images/s a step is 1 s, and an evaluation of 64 images 2/3 s."""
    pace = speed.pace_of(run(), 32.0)
    assert (pace.step, pace.evaluation) == (1.0, pytest.approx(2 / 3))
    assert speed.duration(run(), pace, 32.0).value == pytest.approx(32.0)
    probed = run(**{"probe.epochs": 20, "freeze.views": 2})
    assert speed.duration(probed, pace, 32.0).value == pytest.approx(32.0 + (640 + 64) / 32 / 3)
    assert clock(3723) == "1:02:03"


@pytest.mark.parametrize("left, verdict", [(3600.0, OK), (200.0, NOTE), (60.0, PROBLEM)])
def test_the_end_of_the_job(left, verdict):
    job, now = run(), 1e9
    pace = speed.pace_of(job, 32.0)
    found = speed.allocation(job, pace, 32.0, Allocation(end=now + left, lead=180.0), now=now)
    assert (found.verdict, bool(found.remedy)) == (verdict, verdict != OK)
