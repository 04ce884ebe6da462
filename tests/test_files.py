"""Files and folders take their place whole, whatever was there, and an interrupted write leaves what was there."""

from pathlib import Path

import pytest

from ddp_ft.files import read_json, read_sound_json, replacing, replacing_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("contested", [True, False])
def test_a_file_is_replaced_or_left(tmp_path: Path, durable: bool, contested: bool) -> None:
    file = tmp_path / "a.json"
    write_text(file, "old")
    with pytest.raises(KeyError), replacing(file, durable=durable, contested=contested) as aside:
        aside.write_text("half")
        raise KeyError
    assert file.read_text() == "old" and names(tmp_path) == ["a.json"]
    with replacing(file, durable=durable, contested=contested) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("there", ["nothing", "a folder", "a file", "a link"])
@pytest.mark.parametrize("left", ["nothing", "a folder", "a link"])
def test_a_folder_takes_the_place_of_anything(tmp_path: Path, there: str, left: str) -> None:
    """Also if a killed process has left what it put aside."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    for path, what in ((tmp_path / "x", there), (tmp_path / ".old_x", left)):
        if what == "a folder":
            path.mkdir()
            (path / "old").touch()
        elif what == "a file":
            path.touch()
        elif what == "a link":
            path.symlink_to(elsewhere)
    for _ in range(2):
        with replacing_folder(tmp_path / "x", durable=True) as aside:
            (aside / "new").touch()
    assert names(tmp_path) == ["elsewhere", "x"] and names(tmp_path / "x") == ["new"] and names(elsewhere) == ["kept"]


def test_a_folder_is_left_where_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="full"), replacing_folder(tmp_path / "x", durable=False) as aside:
        (aside / "half").touch()
        raise OSError("full")
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == []


def test_a_full_disk_is_an_error_of_the_file_that_was_written(tmp_path: Path) -> None:
    for opened in (replacing, replacing_folder):
        with pytest.raises(OSError, match="No space") as raised, opened(tmp_path / "x", durable=False):
            Path("/dev/full").write_text("x", encoding="utf-8")
        assert raised.value.filename == str(tmp_path / "x")


def test_json_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert read_json(file, dict) is None and read_sound_json(file, dict) == {}
    for text in ("", "{", "[]", "3"):
        file.write_text(text)
        assert read_sound_json(file, dict) == {}
        with pytest.raises(ValueError):
            read_json(file, dict)
    file.write_text('{"a": 1}')
    assert read_json(file, dict) == read_sound_json(file, dict) == {"a": 1}
