"""Requests to stop: soon, softly, or at once."""

import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import images
from tests.support.marks import slowly
from tests.support.runs import arguments, read
from tests.system.faults import nets
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

VAL_EACH = 220  # 660 images are 11 chunks of an evaluation


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few images to train on, and enough to validate on for an evaluation that can be slow."""
    return images.write_shapes(tmp_path_factory.mktemp("many"), train=8, val=VAL_EACH, size=(24, 24))


@pytest.mark.parametrize(("world_size", "number"), [(1, signal.SIGHUP), *slowly((2, signal.SIGTERM))])
def test_a_stop_during_a_slow_evaluation_does_not_wait_for_its_end(many, tmp_path, world_size, number):
    """Each of 11 chunks takes 3 s; the evaluation that was cut short is made up for by the next start."""
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    slow = Fault(str(tmp_path / "fault"), "slow", "eval")
    job = ForkedJob(world_size, arguments(many, run, epochs=2), slow.environment())
    job.wait_for(slow.reached)
    begin = time.monotonic()
    job.signal(number)
    codes, said = job.end()
    assert time.monotonic() - begin < 10, said
    assert codes == ([75] if world_size == 1 else [0] * world_size), said
    summary = read(run, "summary.json")
    assert (summary["status"], summary["step"]) == ("stopped", 3)
    for folder in (run, unbroken):
        codes, said = run_forked(world_size, arguments(many, folder, epochs=2))
        assert codes == [0] * world_size, said
    assert_same_result(run, unbroken)


def test_a_second_interrupt_leaves_at_once(shapes, tmp_path):
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 3)
    job = ForkedJob(1, arguments(shapes, tmp_path / "run"), waits.environment())
    job.wait_for(waits.reached)
    job.signal(signal.SIGINT)
    time.sleep(0.5)
    assert job.processes[0].is_alive()  # the first one waits for the step's end, which never comes
    job.signal(signal.SIGINT)
    begin = time.monotonic()
    codes, said = job.end(10)
    assert codes == [130] and time.monotonic() - begin < 3, said
    assert "Traceback" not in said


def test_a_file_named_stop_stops_softly_and_is_cleared(shapes, tmp_path):
    run = tmp_path / "run"
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 2)
    job = ForkedJob(1, arguments(shapes, run, epochs=40), waits.environment())
    job.wait_for(waits.reached)
    (run / "stop").touch()
    waits.release()
    codes, said = job.end()
    assert codes == [75], said
    summary = read(run, "summary.json")
    assert summary["status"] == "stopped" and summary["step"] < 160
    codes, said = run_forked(1, arguments(shapes, run, epochs=40))
    assert codes == [0], said
    assert not (run / "stop").exists() and read(run, "summary.json")["status"] == "done"


@pytest.mark.slow
def test_under_torchrun_the_file_stops_all_ranks_and_a_later_launch_clears_it(shapes, tmp_path, torchrun):
    run = tmp_path / "run"
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 2)
    args = [*arguments(shapes, run, epochs=40), "--model", f"{nets.THIS_FILE}:armed"]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(torchrun, 2, args, env=waits.environment())
        while not waits.reached.exists() and not first.done():
            time.sleep(0.05)
        (run / "stop").touch()
        waits.release()
        done = first.result()
    assert done.returncode == 0 and read(run, "summary.json")["status"] == "stopped", done.stderr
    done = torchrun(2, args)
    assert done.returncode == 0 and read(run, "summary.json")["status"] == "done", done.stderr
    assert not (run / "stop").exists()


def test_a_disk_that_is_full_is_said_and_costs_nothing(shapes, tmp_path, request):
    """On a real file system of 2 MB; only root may mount one."""
    disk, big = tmp_path / "disk", tmp_path / "disk/other people's file"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", disk], check=True))
    waits = Fault(str(tmp_path / "fault"), "wait", "train", 6)
    job = ForkedJob(1, arguments(shapes, disk / "run", epochs=2), waits.environment())
    job.wait_for(waits.reached)
    with big.open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)
    waits.release()
    codes, said = job.end()
    assert codes not in ([0], [75]) and "No space left on device" in said, said
    big.unlink()
    for run in (disk / "run", tmp_path / "unbroken"):
        codes, said = run_forked(1, arguments(shapes, run, epochs=2))
        assert codes == [0], said
    assert_same_result(disk / "run", tmp_path / "unbroken")
    shutil.rmtree(disk / "run")
