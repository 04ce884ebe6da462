"""Files of a run have the permissions that the umask gives: colleagues can read, or resume, what is theirs too."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ddp_ft.cli.runs import run_folders
from ddp_ft.contracts import Evaluation
from ddp_ft.errors import UserError
from ddp_ft.features.cache import ChunkStore
from ddp_ft.run_folder.checkpoints import Checkpoints, Score
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.lease import Lease
from ddp_ft.run_folder.model_folder import read_weights, save_model_folder


@contextmanager
def creating_with(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def reading_as_another_user(file: Path) -> Iterator[None]:
    """In the block the file may not be read; root, which may read all, becomes somebody else meanwhile."""
    mode, is_root = file.stat().st_mode, os.geteuid() == 0
    file.chmod(0)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        file.chmod(mode)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_decides(tmp_path: Path, umask: int) -> None:
    run, weights = tmp_path / "run", {"w": torch.ones(2)}
    with creating_with(umask):
        checkpoints = Checkpoints(run / "checkpoints", keep=1)
        checkpoints.save(1, weights, {"step": 1}, Score(0.5), ema=weights)
        checkpoints.save(1, weights, {"step": 1}, Score(0.5))
        save_model_folder(run / "best", weights, {})
        save_evaluation(run, "val", Evaluation({}, weights, {}))
        lease = Lease(run, lambda: 0)
        lease.take()
        lease.release()
        store = ChunkStore(run, samples=1, chunk=1)
        assert store.write(0, torch.ones(1, 2))
        store.finish()
    files = [each for each in run.rglob("*") if not each.is_symlink()]
    wanted = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    wrong = [each for each in files if stat.S_IMODE(each.stat().st_mode) != wanted[each.is_dir()]]
    assert not wrong and len(files) > 10


def test_a_checkpoint_that_may_not_be_read_is_not_set_aside(shared: Path) -> None:
    checkpoints = Checkpoints(shared / "checkpoints", keep=1)
    folder = checkpoints.save(1, {"w": torch.ones(2)}, {"step": 1})
    with reading_as_another_user(folder / "model.safetensors"), pytest.raises(UserError, match="Permission denied"):
        checkpoints.newest_sound()
    assert checkpoints.newest_sound() == (folder, [])


def test_weights_that_may_not_be_read_are_not_called_missing(shared: Path) -> None:
    save_model_folder(shared / "best", {"w": torch.ones(2)}, {})
    file = shared / "best" / "model.safetensors"
    with reading_as_another_user(file), pytest.raises(PermissionError):
        read_weights(file)


def test_a_run_that_may_not_be_entered_hides_no_other(shared: Path) -> None:
    for name in ("ours", "theirs"):
        (shared / name).mkdir()
        (shared / name / "config.yaml").touch()
    with reading_as_another_user(shared / "theirs"):
        assert list(run_folders(shared)) == [shared / "ours"]
