"""A run that goes on on another number of processes sees the same images in the same steps."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.support.runs import arguments, column, read
from tests.system.faults import nets
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

EPOCHS, STEPS, STOP_AT = 3, 12, 6


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in 3 classes of one grey each, by which the net knows them however they are cropped."""
    folder = tmp_path_factory.mktemp("greys")
    for number in range(36):
        file = folder / ("train" if number < 30 else "val") / "abc"[number % 3] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 + 6 * number,) * 3).save(file)
    return folder


def options(data: Path, run: Path) -> list[str]:
    return arguments(data, run, "--model", f"{nets.THIS_FILE}:recording", epochs=EPOCHS)


@pytest.fixture(scope="module")
def whole(greys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    codes, said = run_forked(2, options(greys, folder / "run"), more={nets.RECORDS: str(folder / "seen")})
    assert codes == [0, 0], said
    return folder


def test_the_net_tells_all_images_apart(whole):
    steps = nets.read_steps(whole / "seen")
    assert len(steps) == STEPS
    for epoch in range(EPOCHS):
        seen = [image for step in steps[4 * epoch : 4 * epoch + 4] for image in step]
        assert len(seen) == len(set(seen)) == 30
    assert steps[:4] != steps[4:8]


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_the_images_that_were_left_come_in_the_same_steps(greys, whole, tmp_path, world_size):
    run, fault = tmp_path / "run", Fault(str(tmp_path / "fault"), "wait", "train", STOP_AT)
    job = ForkedJob(2, options(greys, run), {nets.RECORDS: str(tmp_path / "before"), **fault.environment()})
    job.wait_for(fault.reached)
    job.signal(signal.SIGTERM)
    fault.release()
    codes, said = job.end()
    assert codes == [0, 0], said
    stopped_at = read(run, "summary.json")["step"]
    assert stopped_at in (STOP_AT, STOP_AT + 1) and stopped_at % 4  # within an epoch
    codes, said = run_forked(world_size, options(greys, run), more={nets.RECORDS: str(tmp_path / "after")})
    assert codes == [0] * world_size, said
    steps = nets.read_steps(whole / "seen")
    assert nets.read_steps(tmp_path / "before") == steps[:stopped_at]
    assert nets.read_steps(tmp_path / "after") == steps[stopped_at:]
    assert column(run, "step") == list(range(1, STEPS + 1))
    assert column(run, "loss") == pytest.approx(column(whole / "run", "loss"), rel=1e-4)
    assert column(run, "loss", "val") == pytest.approx(column(whole / "run", "loss", "val"), rel=1e-4)
