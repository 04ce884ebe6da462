"""A disk that is full, for a while or for good: training goes on as long as it may, and nothing is half-written."""

import errno
import itertools
import os
import re

import pytest

from ddp_ft.errors import UserError
from ddp_ft.run_folder.checkpoints import Checkpoints, damage_of
from tests.support.ranks import run_ranks
from tests.support.runs import _run_and_tell, arguments, column, read, train_here, train_on
from tests.system.faults import poisoned
from tests.system.faults.forks import run_forked

OFTEN = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99", "--lr", 0.01, "--workers", 0]


def options(net, failures):
    return ["--model", f"{poisoned.THIS_FILE}:{net}", *OFTEN, "--set", f"checkpoint.max_failures={failures}"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_goes_on_and_ends_as_if_nothing_had_been(shapes, tmp_path, world_size):
    train_here(shapes, tmp_path / "whole", *OFTEN, epochs=2)  # the same net without the squeeze
    output = train_on(world_size, shapes, tmp_path / "r", *options("full_for_a_while", 99), epochs=2)
    assert read(tmp_path / "r", "summary.json")["status"] == "done", output
    there = {int(folder.name[5:]) for folder in Checkpoints(tmp_path / "r/checkpoints", 99).complete()}
    # Steps 3 to 6 are squeezed, and what they meet of a background write that began before.
    assert {1, 7, 8} <= there and not {3, 4} & there
    assert not any(damage_of(folder) for folder in Checkpoints(tmp_path / "r/checkpoints", 99).complete())
    assert not list((tmp_path / "r").rglob("*writing*"))
    assert column(tmp_path / "r", "step") == list(range(1, 9))
    assert column(tmp_path / "r", "loss") == pytest.approx(column(tmp_path / "whole", "loss"), rel=1e-4)
    assert (tmp_path / "r/best/model.safetensors").exists()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_ends_after_so_many_failures(shapes, tmp_path, world_size):
    run = tmp_path / "r"
    args = arguments(shapes, run, *options("full_from_then_on", 2), epochs=4)
    with pytest.raises(UserError, match=r"could not be written \d+ times in a row") as raised:
        run_ranks(world_size, _run_and_tell, "ddp_ft.train", args, connected=False)
    # One more may have failed before the ranks heard of the third.
    assert int(re.search(r"written (\d+) times", str(raised.value))[1]) >= 3
    checkpoints = Checkpoints(run / "checkpoints", 99)
    there = checkpoints.complete()
    # That of step 2 may still have been on its way when the disk became full.
    assert [folder.name for folder in there] in (["step_00000001"], ["step_00000001", "step_00000002"])
    assert checkpoints.newest_sound() == (there[-1], [])


def break_event_files() -> None:
    """Let TensorBoard's own thread fail at its tenth write, as on a disk that is full for that moment."""
    from tensorboard.compat.tensorflow_stub.io import gfile

    plain, numbers = gfile.LocalFileSystem._write, itertools.count(1)

    def write(self, *arguments):
        if next(numbers) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(self, *arguments)

    gfile.LocalFileSystem._write = write


def test_a_run_outlives_its_event_files_and_exits(shapes, tmp_path):
    """Also with loader workers, which such an exception once kept, and they the process."""
    args = arguments(shapes, tmp_path / "r", "--workers", 1, epochs=2)
    codes, said = run_forked(1, args, prepare=break_event_files, seconds=180)
    assert codes == [0], said
    assert "TensorBoard failed and is left out" in said
    assert len(column(tmp_path / "r", "loss")) == 8
