"""A long scan reports, and ends at Ctrl-C; folders of the system are refused."""

import os
import signal
import threading
from pathlib import Path

import pytest

from ddp_ft.data.sources import scan_watch
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.data.sources.scan import check_scannable, find_files, list_classes
from ddp_ft.data.sources.scan_watch import ScanWatch
from ddp_ft.data.splits.folder import open_folder
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.errors import UserError


@pytest.mark.parametrize("folder", ["/", "/usr", "/proc/self", "//usr/../etc/"])
def test_folders_of_the_system_are_refused(folder: str) -> None:
    if not Path(folder).is_dir():
        pytest.skip("not on this system")
    with pytest.raises(UserError, match="a folder of the system"):
        open_folder(Path(folder), ["a", "b"])
    with pytest.raises(UserError, match="a folder of the system"):
        list_images([folder])


def test_folders_below_them_are_not(tmp_path: Path) -> None:
    for folder in (
        tmp_path,
        Path("/usr/share/images"),
        Path("/var/data"),
        Path("/dev/shm/set"),
        Path("/mnt"),
        Path("/home"),
    ):
        check_scannable(folder, str(folder))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(20):
            (tmp_path / name / str(number)).mkdir(parents=True)
            (tmp_path / name / str(number) / "1.jpg").touch()
    return tmp_path


def test_a_long_scan_reports_where_it_is(classes: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(scan_watch, "FIRST_REPORT", 0.0)
    assert len(list_classes(classes).paths) == 40
    assert f"Reading {classes}: " in (printed := capsys.readouterr().err) and "now in" in printed
    assert printed.count("\n") == 1


def test_ctrl_c_ends_a_scan_though_training_would_only_note_it(classes: Path) -> None:
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            list_classes(classes)
        with pytest.raises(KeyboardInterrupt):
            find_files(classes)
    assert len(list_classes(classes).paths) == 40


def test_an_interrupted_scan_leaves_no_thread_reading(classes: Path, monkeypatch) -> None:
    """As in commands whose Ctrl-C is an exception of the main thread, which then waits for the threads."""
    seen: list[str] = []

    def interrupted(self: ScanWatch, folder: str, entries: int) -> None:
        seen.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(ScanWatch, "at", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list_classes(classes)
    assert threading.active_count() == before and len(seen) <= 2
