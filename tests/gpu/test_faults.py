"""Kills, requests to stop, and memory that is really short."""

import signal

import pytest

from tests.gpu import nets
from tests.gpu.conftest import COMMAND_SECONDS
from tests.gpu.test_train import figures, losses
from tests.support.commands import run_module
from tests.support.runs import column, read
from tests.system.faults import poisoned
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.fault import Fault

pytestmark = pytest.mark.gpu
REPEATS = ("--set", "compute.deterministic=true", "--set", "checkpoint.every_steps=3")


GROUPED = pytest.mark.parametrize("ranks", [0, 1], ids=["alone", "one rank"])


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_kill_changes_no_bit(machine, tmp_path, precision):
    """SIGKILL in the eighth step, with deterministic kernels; batch norm, dropout and an average of the weights."""
    if precision != "fp32":
        machine.need_cuda("few CPUs compute in bf16, and none in fp16")
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = (*REPEATS, "--precision", precision, "--ema", 0.9)
    fault = Fault(str(tmp_path / "fault"), "kill", "train", 8)
    codes, printed = machine.job(run, *options, fault=fault).end(COMMAND_SECONDS)
    assert codes == [-signal.SIGKILL] and not (run / "summary.json").exists(), printed[-2000:]
    for folder in (run, whole):
        codes, printed = machine.job(folder, *options).end(COMMAND_SECONDS)
        assert codes == [0], printed[-2000:]
    assert_same_result(run, whole)


@GROUPED
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_request_to_stop(machine, tmp_path, number, ranks):
    """It stops (with 75, and under torchrun with 0, which would take 75 for a failure) and goes on: each step once."""
    run = tmp_path / "run"
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 4)
    job = machine.job(run, ranks=ranks, fault=waits)
    job.wait_for(waits.reached, COMMAND_SECONDS)
    job.signal(number)
    waits.release()
    codes, printed = job.end(COMMAND_SECONDS)
    assert codes == [0 if ranks else 75] and read(run, "summary.json")["status"] == "stopped", printed[-2000:]
    machine.train(run)
    assert column(run, "step") == list(range(1, 13)) and losses(run)


def test_a_rank_that_fails_ends_all(machine, tmp_path):
    """Its message is printed, and nobody waits for ever in a sum."""
    fault = Fault(str(tmp_path / "fault"), "raise", "train", 4, rank=1)
    codes, printed = machine.job(tmp_path / "run", ranks=2, fault=fault).end(COMMAND_SECONDS)
    assert codes[1] == 1 and codes[0] != 0 and "Internal error" in printed, printed[-2000:]


def test_a_loss_that_is_not_finite(machine, tmp_path):
    """Two steps are skipped, and one of them is replayed."""
    run = tmp_path / "run"
    machine.train(run, "--model", f"{poisoned.THIS_FILE}:twice")
    assert read(run, "summary.json")["bad_steps"] == 2
    assert column(run, "step") == list(range(1, 13))
    done = run_module("ddp_ft.cli.main", "replay", run, 4, "--device", machine.device)
    assert done.returncode == 1 and "Not all is finite" in done.stdout, done.stderr[-2000:]


@GROUPED
def test_memory_that_is_short(machine, tmp_path, record_property, ranks):
    """The allocator refuses what 16 images need; the run goes on with smaller micro-batches."""
    machine.need_cuda("a CPU's memory is taken from others, not refused")
    options = ("--model", f"{nets.THIS_FILE}:in_little_memory", "--precision", "fp32")
    codes, printed = machine.job(tmp_path / "r", *options, ranks=ranks).end(COMMAND_SECONDS)
    assert codes == [0], printed[-2000:]
    plan = read(tmp_path / "r", "plan.json")
    assert plan["lowered"] and losses(tmp_path / "r")
    record_property("note", f"micro-batches of {plan['lowered'][-1]}, {figures(tmp_path / 'r')}")


def test_a_micro_batch_that_fits_is_found(machine, tmp_path, record_property):
    """Without a margin, since the limit is the allocator's and not the card's: it may be lowered once more."""
    machine.need_cuda("a CPU's memory is taken from others, not refused")
    options = ("--model", f"{nets.THIS_FILE}:in_little_memory", "--precision", "fp32", "--micro-batch", "auto")
    machine.train(tmp_path / "r", *options)
    plan = read(tmp_path / "r", "plan.json")
    assert 0 < plan["micro_batch"] < 16 and losses(tmp_path / "r")
    record_property("note", f"micro-batches of {plan['micro_batch']}, {figures(tmp_path / 'r')}")


def test_steps_do_not_wait_for_the_device(machine, tmp_path, record_property):
    """What a whole step of the command makes the processor wait for, counted by torch: the difference of two runs that
    differ by 12 steps of an epoch, so that starts, evaluations and checkpoints do not count."""
    machine.need_cuda("a CPU has nobody to wait for")
    counts = []
    for batch in (16, 4):
        more = ("--model", f"{nets.THIS_FILE}:counted", "--batch-size", batch, "--epochs", 1)
        printed = machine.train(tmp_path / str(batch), *more, "--set", "log.every_steps=100")
        counts.append(printed.count(nets.WAITING))
    each = (counts[1] - counts[0]) / (24 - 6)
    record_property("note", f"{each:.2f} a step ({counts[0]} and {counts[1]} in all)")
    assert each < 0.5
