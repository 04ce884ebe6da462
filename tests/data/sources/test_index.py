"""The stored index of a large folder: as good as reading it again, and never in the way."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.config.user_cache import FOLDER_VARIABLE
from ddp_ft.data.sources import index, scan
from ddp_ft.data.splits.open import Splits, open_splits
from ddp_ft.errors import UserError
from tests.data.image.image_files import save_classes, save_image


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; small data sets are stored too, and what was changed a moment ago."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH_STORING", 1)
    monkeypatch.setattr(index, "SETTLED_SECONDS", -60.0)
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_classes(tmp_path / "data" / "train", {"a": 4, "a b": 3, "c": 2})
    save_classes(tmp_path / "data" / "val", {"a": 2, "c": 1})
    save_image(tmp_path / "data" / "train" / "a" / "deep" / "x.png")
    (tmp_path / "data" / "train" / "c" / "notes.txt").touch()
    return tmp_path / "data"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of class folders that are read, as they are."""
    seen: list[Path] = []
    real = scan.list_classes

    def list_classes(folder: Path, *more: object):
        seen.append(folder)
        return real(folder, *more)

    monkeypatch.setattr(scan, "list_classes", list_classes)
    return seen


def opened(data: Path) -> Splits:
    return open_splits(DataConfig(path=data), 0)


def told(splits: Splits) -> object:
    return (
        *((list(part.paths), part.targets.tolist()) for part in (splits.train, splits.val)),
        splits.schema, splits.fingerprint, splits.record, splits.notes,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["", "train"])
def test_says_the_same_and_reads_nothing(data: Path, cache: Path, scans: list[Path], layout: str) -> None:
    data = data / layout
    first = opened(data)
    assert scans and len(list(cache.iterdir())) == 1
    scans.clear()
    assert told(opened(data)) == told(first)
    assert scans == []


def _add(data: Path) -> None:
    save_image(data / "train" / "a" / "new.png")


def _add_deep(data: Path) -> None:
    save_image(data / "train" / "a" / "deep" / "new.png")


def _add_to_val(data: Path) -> None:
    save_image(data / "val" / "c" / "new.png")


def _remove(data: Path) -> None:
    (data / "train" / "a" / "000.png").unlink()


def _rename(data: Path) -> None:
    (data / "train" / "a" / "000.png").rename(data / "train" / "a" / "new.png")


def _move(data: Path) -> None:
    (data / "train" / "a" / "000.png").rename(data / "train" / "c" / "000.png")


def _add_class(data: Path) -> None:
    save_image(data / "train" / "d" / "1.png")


def _remove_class(data: Path) -> None:
    shutil.rmtree(data / "train" / "a b")


def _write_over(data: Path) -> None:
    with (data / "train" / "a" / "000.png").open("ab") as stream:
        stream.write(b"!")


def _add_and_set_the_time_back(data: Path) -> None:
    folder = data / "train" / "a"
    before = folder.stat()
    save_image(folder / "new.png")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        _add, _add_deep, _add_to_val, _remove, _rename, _move, _add_class, _remove_class, _write_over,
        _add_and_set_the_time_back,
    ],
)  # fmt: skip
def test_notices(change: Callable[[Path], None], data: Path, cache: Path, scans: list[Path]) -> None:
    first = opened(data)
    time.sleep(0.02)  # more than a tick of the file system's clock
    change(data)
    scans.clear()
    after = opened(data)
    assert scans and after.fingerprint != first.fingerprint
    shutil.rmtree(cache)
    assert told(opened(data)) == told(after)


def test_a_run_in_the_data_folder_may_change_until_it_has_images(data: Path, cache: Path, scans: list[Path]) -> None:
    run = data / "train" / "runs" / "x"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "plan.json").touch()
    first = opened(data)
    time.sleep(0.02)
    (run / "summary.json").touch()
    (run.parent / "y").mkdir()
    scans.clear()
    assert told(opened(data)) == told(first)
    assert scans == []
    save_image(run.parent / "y" / "1.png")
    assert "runs" in opened(data).schema.names


def test_notices_a_test_folder_that_was_not_there(data: Path, cache: Path) -> None:
    assert opened(data).test is None
    save_classes(data / "test", {"a": 1})
    assert opened(data).test is not None


def test_what_was_changed_a_moment_ago_is_not_stored(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED_SECONDS", 60.0)
    opened(data)
    assert not cache.exists()


def test_small_sets_and_mistakes_are_not_stored(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        opened(data)
    (data / "train" / "empty").rmdir()
    monkeypatch.setattr(index, "WORTH_STORING", 14)
    opened(data)
    assert not cache.exists()
    monkeypatch.setattr(index, "WORTH_STORING", 13)
    opened(data)
    assert cache.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "bytes", "other"])
def test_a_damaged_file_is_written_anew(damage: str, data: Path, cache: Path, scans: list[Path]) -> None:
    first = opened(data)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    halved, altered = whole[: len(whole) // 2], whole.replace(b"a/000.png", b"a/999.png")
    file.write_bytes({"empty": b"", "cut": halved, "bytes": altered, "other": b"no archive"}[damage])
    scans.clear()
    assert told(opened(data)) == told(first) and scans
    scans.clear()
    assert told(opened(data)) == told(first) and not scans


def test_a_file_of_other_arrays_is_written_anew(data: Path, cache: Path) -> None:
    first = opened(data)
    (file,) = cache.iterdir()
    np.savez(file, facts=np.frombuffer(b"[]", np.uint8))
    assert told(opened(data)) == told(first)


@pytest.mark.parametrize("way", ["a file", "below a file", "off"])
def test_a_store_that_cannot_be_is_done_without(way: str, data: Path, tmp_path: Path, cache: Path, monkeypatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    monkeypatch.setenv(FOLDER_VARIABLE, {"a file": str(blocked), "below a file": f"{blocked}/x", "off": ""}[way])
    assert len(opened(data).train) == len(opened(data).train) == 10
    assert blocked.read_bytes() == b"" and not cache.exists()


def test_lies_in_the_users_cache_folder(data: Path, tmp_path: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened(data)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    opened(data)
    for folder in (tmp_path / "xdg" / "ddp_ft", tmp_path / "home" / ".cache" / "ddp_ft"):
        assert [file.suffix for file in folder.iterdir()] == [".npz"]


def test_a_path_from_elsewhere_finds_it_too(data: Path, cache: Path, scans: list[Path], monkeypatch) -> None:
    first = opened(data)
    scans.clear()
    monkeypatch.chdir(data.parent)
    again = opened(Path("data"))
    assert told(again)[:4] == told(first)[:4] and not scans
    assert again.val.read(0).keys() == {"image", "target"}


def test_few_files_are_kept(data: Path, cache: Path, tmp_path: Path, scans: list[Path]) -> None:
    for number in range(10):
        opened(shutil.copytree(data, tmp_path / f"copy_{number}"))
    abandoned = cache / "index-0.writing"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    (cache / "other").touch()
    opened(data)
    assert len(list(cache.glob("index-*.npz"))) == 8
    assert not abandoned.exists() and (cache / "other").exists()
    scans.clear()
    opened(data)
    assert not scans
