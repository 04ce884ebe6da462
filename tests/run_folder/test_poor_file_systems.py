"""File systems that lack something, as FAT, FUSE and network drives do: no links, no locks, no fsync, coarse times."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from ddp_ft.cli.runs import read_run
from ddp_ft.errors import UserError
from ddp_ft.files import write_text
from ddp_ft.models.weight_files import find_file
from ddp_ft.run_folder.checkpoints import Checkpoints, Score
from ddp_ft.run_folder.folder import STOP_FILE, RunFolder
from ddp_ft.run_folder.lease import Holder, Lease, is_held, read_lease
from ddp_ft.run_folder.model_folder import save_model_folder
from ddp_ft.run_folder.pointers import followed, point, target_of
from ddp_ft.slurm.job import read_mark
from ddp_ft.slurm.requeue import History


def refuse(code: int) -> Any:
    def call(*args: Any, **options: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return call


def save(run: Path, step: int, score: float) -> Path:
    return Checkpoints(run / "checkpoints", keep=1).save(step, {"w": torch.ones(step)}, {"step": step}, Score(score))


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM])
def test_without_links_small_files_name_the_last_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "symlink", refuse(code))
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        save(tmp_path, step, score)
    last, best = tmp_path / "checkpoints" / "last", tmp_path / "checkpoints" / "best"
    assert last.read_text() == "step_00000003\n" and best.is_file() and not best.is_symlink()
    assert [target_of(last), target_of(best)] == ["step_00000003", "step_00000002"]
    assert read_mark(tmp_path, History()).newest == "step_00000003"
    assert find_file(str(best)) == tmp_path / "checkpoints" / "step_00000002" / "model.safetensors"
    assert Checkpoints(tmp_path / "checkpoints", keep=1).newest_sound() == (tmp_path / "checkpoints/step_00000003", [])
    monkeypatch.undo()
    save(tmp_path, 4, 0.95)  # moved to a disk that has links
    assert last.is_symlink() and target_of(best) == "step_00000004"


def test_a_copy_whose_links_were_followed_resumes(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, 0.5)
    for name in ("last", "best"):
        pointer = folder.with_name(name)
        pointer.unlink()
        pointer.mkdir()
        (pointer / "state.pt").touch()
    assert Checkpoints(folder.parent, keep=1).newest_sound() == (folder, [])
    assert target_of(folder.with_name("last")) == target_of(folder.with_name("best")) == folder.name


@pytest.mark.parametrize("text", ["", "../../elsewhere", "/etc/passwd", "..", "a" * 300, "a\0b"])
def test_a_pointer_leads_nowhere_else(tmp_path: Path, text: str) -> None:
    pointer = tmp_path / "checkpoints" / "last"
    pointer.parent.mkdir()
    pointer.write_text(text)
    assert target_of(pointer) == "" and followed(pointer) == pointer
    point(pointer, "step_00000001")
    assert target_of(pointer) == "step_00000001"


def test_without_fsync_of_folders_without_chmod_and_where_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, replace = os.fsync, os.replace

    def sync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    def replace_nothing(source: Any, target: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync_files)
    monkeypatch.setattr(os, "replace", replace_nothing)
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    for step in (1, 2):
        save(tmp_path, step, step)
        save_model_folder(tmp_path / "best", {"w": torch.ones(step)}, {})
        write_text(tmp_path / "a.json", str(step))
    assert target_of(tmp_path / "checkpoints" / "last") == "step_00000002"
    assert (tmp_path / "a.json").read_text() == "2"


def test_a_full_disk_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.json", "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_without_locks_heartbeats_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "lockf", refuse(code))
    first = Lease(tmp_path, lambda: 0)
    first.take()
    assert is_held(tmp_path) is None and read_run(tmp_path, tmp_path).state == "running"
    with pytest.raises(UserError, match="being written by another start"):
        Lease(tmp_path, lambda: 0, patience=0.0).take()
    first.release()
    assert read_lease(tmp_path) != Holder() and read_run(tmp_path, tmp_path).state == "crashed"
    second = Lease(tmp_path, lambda: 0, patience=0.0)  # at once: the first has ended
    second.take()
    second.release()


def test_a_request_to_stop_outlives_coarse_times(tmp_path: Path) -> None:
    file = tmp_path / STOP_FILE
    for changed, stays in ((1000.0, True), (998.0, False), (1000.5, False), (1001.5, True)):
        file.touch()
        os.utime(file, (changed, changed))
        RunFolder(tmp_path).clear_old_stop(launched=1001.0)
        assert file.exists() == stays, changed
